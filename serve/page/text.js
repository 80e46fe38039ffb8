// A model's text as elements. Every piece of it becomes a text node: none is ever read as HTML.

export function render(target, text) {
  target.replaceChildren();
  let list = null;
  let lines = [];
  const flush = () => {
    if (lines.join("").trim()) target.append(filled("p", lines.join("\n")));
    lines = [];
  };
  const all = text.split("\n");
  for (let i = 0; i < all.length; i++) {
    const fence = /^\s*```/.test(all[i]);
    const item = /^\s*[-*]\s+(.*)$/.exec(all[i]);
    if (!item) list = null;
    if (fence) {
      flush();
      const code = [];
      while (++i < all.length && !/^\s*```\s*$/.test(all[i])) code.push(all[i]);
      const pre = document.createElement("pre");
      const inner = document.createElement("code");
      inner.textContent = code.join("\n");
      pre.append(inner);
      target.append(pre);
    } else if (item) {
      flush();
      if (!list) {
        list = document.createElement("ul");
        target.append(list);
      }
      list.append(filled("li", item[1]));
    } else if (all[i].trim() === "") {
      flush();
    } else {
      lines.push(all[i]);
    }
  }
  flush();
}

function filled(tag, text) {
  const element = document.createElement(tag);
  text.split(/(`[^`\n]+`)/).forEach((part, index) => {
    if (index % 2) {
      const code = document.createElement("code");
      code.textContent = part.slice(1, -1);
      element.append(code);
    } else {
      element.append(document.createTextNode(part));
    }
  });
  return element;
}
