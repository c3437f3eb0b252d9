// A button on every block of code that copies it: of commands without the prompt, of Python sessions the input alone.
document.addEventListener("DOMContentLoaded", () => {
  for (const block of document.querySelectorAll("div.highlight")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      const lines = block.querySelector("pre").innerText.split("\n");
      const prompted = lines.filter((line) => /^(\$|>>>|\.\.\.)( |$)/.test(line));
      const text = (prompted.length ? prompted.map((line) => line.replace(/^(\$|>>>|\.\.\.) ?/, "")) : lines).join("\n");
      await navigator.clipboard.writeText(text.trimEnd() + "\n");
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
    block.append(button);
  }
});
