/** An address that isn't a page. */

import { h } from "../dom.js";
import { emptyState, pageHead } from "../components.js";

/** @returns {Promise<import("../app.js").Page>} */
export async function show() {
  return {
    title: "No such page",
    element: h("div", {}, pageHead("No such page"),
      emptyState("search", "There is nothing at this address.", h("a", { class: "button primary", href: "#/" }, "To the overview"))),
  };
}
