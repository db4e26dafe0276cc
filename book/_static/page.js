// Jupyter Book gives its theme no default mode, which the theme complains of on every page. Before anything is
// drawn, so that a dark page never flashes white, the reader's system chooses.
{
  const page = document.documentElement.dataset;
  page.mode ||= "auto";
  page.theme ||= window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

// Sphinx writes lists whose roles screen readers do not know, or whose items they do not find.
document.addEventListener("DOMContentLoaded", () => {
  const say = (role, selector) => document.querySelectorAll(selector).forEach((part) => part.setAttribute("role", role));
  say("listitem", "[role='doc-biblioentry']");
  say("list", "dt.sig > dl");
  say("listitem", "dt.sig > dl > dd");
});
