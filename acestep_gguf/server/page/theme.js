// Before anything is drawn, so that nothing flashes: the appearance that was chosen on this page.
try {
  document.documentElement.dataset.theme = localStorage.getItem("acestep-gguf theme") ?? "";
} catch {
  // The browser lets the page keep nothing: it looks as the system does.
}
