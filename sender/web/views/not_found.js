/** The page for unknown addresses. */

import { h } from "../dom.js";
import { emptyState, pageHead } from "../components.js";

/** @returns {Promise<import("../app.js").Page>} */
export async function show() {
  return {
    title: "Page not found",
    element: h("div", {}, pageHead("Page not found"),
      emptyState("search", "There is nothing at this address.", h("a", { class: "button primary", href: "#/" }, "Go to the overview"))),
  };
}
