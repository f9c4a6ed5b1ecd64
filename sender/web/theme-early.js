// Runs before the first paint, so that a dark page never flashes white. A classic script: modules come too late.
(function applyThemeEarly() {
  let choice = null;
  try {
    choice = window.localStorage.getItem("diskcast.theme");
  } catch {
    // Storage is switched off: the system's choice counts.
  }
  const dark = choice === "dark" || (choice !== "light" && window.matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
})();
