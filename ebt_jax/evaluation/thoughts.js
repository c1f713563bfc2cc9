(() => {
  const panel = document.getElementById("panel"), tokens = [...document.querySelectorAll(".tokens button")];
  let shown;
  const show = (token) => {
    if (token === shown) return;
    if (shown) shown.setAttribute("aria-pressed", "false");
    shown = token;
    token.setAttribute("aria-pressed", "true");
    panel.replaceChildren(document.getElementById(token.dataset.thought).content.cloneNode(true));
  };
  const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10, Home: -tokens.length, End: tokens.length };
  tokens.forEach((token, i) => {
    token.tabIndex = i ? -1 : 0; // one stop of the Tab key; arrows go on from there
    token.addEventListener("pointerenter", () => show(token));
    token.addEventListener("click", () => show(token));
    token.addEventListener("focus", () => {
      tokens.forEach((other) => (other.tabIndex = other === token ? 0 : -1));
      show(token);
    });
    token.addEventListener("keydown", (event) => {
      if (!(event.key in move) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      tokens[Math.min(Math.max(i + move[event.key], 0), tokens.length - 1)].focus();
    });
  });
})();
