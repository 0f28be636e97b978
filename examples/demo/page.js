// The page's own behaviour: blanks by selection. No text is ever put in as HTML.
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
    // Once the page has put the text in, after this call.
    setTimeout(() => {
      area.focus();
      area.setSelectionRange(place, place);
    }, 50);
    return text.slice(0, start) + BLANK + text.slice(end);
  };

  document.addEventListener("keydown", (event) => {
    // By the key's place, since Alt writes another letter on some keyboards.
    if (event.altKey && event.code === "KeyB" && event.target.closest?.("#infill-text")) {
      event.preventDefault();
      document.getElementById("infill-blank").click();
    }
  });
})();
