// Runs before the first paint, so a dark page never flashes white. A classic script, because modules run too late.
(function applyThemeEarly() {
  let choice = null;
  try {
    choice = window.localStorage.getItem("diskcast.theme");
  } catch {
    // Storage is disabled: use the theme of the system.
  }
  const dark = choice === "dark" || (choice !== "light" && window.matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
})();
