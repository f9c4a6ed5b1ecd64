/** The login page. */

import { ApiProblem, post } from "../api.js";
import { h, icon } from "../dom.js";
import { field, fieldProblem, form } from "../forms.js";

/**
 * @param {{signal: AbortSignal, entered: () => void, problem?: string}} context
 * @returns {Promise<import("../app.js").Page>}
 */
export async function show({ entered, problem }) {
  const token = field({
    label: "Token", name: "token", type: "password", required: true,
    hint: "Starts with dct_. Operators create tokens with “diskcast tokens create”.",
    attributes: { autocomplete: "current-password", spellcheck: "false", "data-autofocus": true },
  });
  const element = h("div", { class: "login" },
    h("div", { class: "login-card card" },
      icon("cast"),
      h("h1", { tabindex: -1 }, "Log in to diskcast"),
      h("p", { class: "muted" }, problem ?? "On the machine of the daemon, “diskcast dashboard” prints a link that logs you in."),
      form({
        fields: [token],
        content: token.element,
        submit: "Log in",
        onsubmit: async () => {
          let session;
          try {
            session = await post("/session", { token: token.input.value.trim() });
          } catch (error) {
            if (error instanceof ApiProblem && error.status === 401) {
              throw fieldProblem("token", error.message || "Unknown token.");
            }
            throw error;
          }
          if (session.role === "enrol" || session.role === "boot") throw fieldProblem("token", "This token is for agents only. Use one with the role view or operate.");
          entered();
        },
      })));
  return { title: "Log in", element };
}
