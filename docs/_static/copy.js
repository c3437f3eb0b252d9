// A button on every block of code that copies it: of commands without the prompt, of Python sessions the input alone.
document.addEventListener("DOMContentLoaded", () => {
  if (!navigator.clipboard) return; // browsers withhold it from pages that came by plain HTTP from another machine
  for (const block of document.querySelectorAll("div.highlight")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      const text = block.querySelector("pre").innerText.trimEnd();
      try {
        await navigator.clipboard.writeText(/^(\$|>>>) /.test(text) ? typedIn(text) : text);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Not copied";
      }
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
    block.append(button);
  }
});

// What was typed in a session: the lines with a prompt, without it. No line break at the end, which a shell would obey.
function typedIn(session) {
  const prompt = /^(\$|>>>|\.\.\.)( |$)/;
  return session.split("\n").filter((line) => prompt.test(line)).map((line) => line.replace(prompt, "")).join("\n");
}
