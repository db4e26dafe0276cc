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

// What is wider than its place says that it scrolls, and can be scrolled by keys; custom.css has the words.
{
  const places = ".bd-article mjx-container, .pst-scrollable-table-container, .output.text_html";
  const mark = () =>
    document.querySelectorAll(places).forEach((place) => {
      const set = place.querySelector(":scope > mjx-math"); // beside it stands what is for screen readers
      const width = set ? set.getBoundingClientRect().width : place.scrollWidth;
      const room = Math.min(place.clientWidth, place.parentElement.clientWidth || Infinity);
      const scrolls = width > room + 1;
      place.toggleAttribute("data-scrolls", scrolls);
      if (scrolls) place.tabIndex = 0;
    });
  window.addEventListener("load", async () => {
    await window.MathJax?.startup?.promise;
    mark();
    window.addEventListener("resize", mark);
    document.addEventListener("toggle", mark, true); // of what was folded
  });
}
