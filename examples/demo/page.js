// The page's own behaviour: blanks by selection, and the nearest usages of a word. No text is ever put in as HTML.
(() => {
  "use strict";
  const BLANK = "[blank]";

  // The new text with the selected words blanked, or with a blank at the cursor; keeps spaces at either end outside.
  window.magnetBlank = (text) => {
    const area = document.querySelector("#infill-text textarea");
    let [start, end] = [area.selectionStart, area.selectionEnd];
    while (start < end && /\s/.test(text[start])) start++;
    while (end > start && /\s/.test(text[end - 1])) end--;
    const place = start + BLANK.length;
    // Once the page has put the text in, behind this call.
    setTimeout(() => {
      area.focus();
      area.setSelectionRange(place, place);
    }, 50);
    return text.slice(0, start) + BLANK + text.slice(end);
  };

  document.addEventListener("keydown", (event) => {
    // By place, since Alt writes another letter on some keyboards.
    if (event.altKey && event.code === "KeyB" && event.target.closest?.("#infill-text")) {
      event.preventDefault();
      document.getElementById("infill-blank").click();
    }
  });

  const tell = (event) => {
    const word = event.target.closest?.("button.word");
    if (!word) return;
    const shown = word.closest(".usages").parentElement;
    const near = word.dataset.near.split(" ");
    for (const other of shown.querySelectorAll("button.word")) {
      other.classList.toggle("chosen", other === word);
      other.classList.toggle("close", near.includes(other.dataset.word));
    }
    shown.querySelector(".near").textContent = `“${word.textContent}” is nearest to ${word.dataset.told}.`;
  };
  for (const kind of ["mouseover", "focusin", "click"]) document.addEventListener(kind, tell);
})();
