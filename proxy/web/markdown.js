// A small, safe part of Markdown: fenced code, inline code, bold. Builds text nodes only; links and images stay text.

/** @param {string} source @returns {Node[]} */
export function renderMarkdown(source) {
  const nodes = [];
  const fence = /^```([^\n`]*)\n([\s\S]*?)(?:\n```[ \t]*(?:\n|$)|$(?![\s\S]))/gm;
  let from = 0;
  for (const match of source.matchAll(fence)) {
    nodes.push(...paragraphs(source.slice(from, match.index)));
    nodes.push(codeBlock(match[2], match[1].trim()));
    from = match.index + match[0].length;
  }
  nodes.push(...paragraphs(source.slice(from)));
  return nodes;
}

function codeBlock(text, language) {
  const pre = document.createElement("pre");
  const code = document.createElement("code");
  if (language) code.dataset.language = language;
  code.textContent = text;
  pre.append(code);
  return pre;
}

function paragraphs(text) {
  return text.split(/\n{2,}/).map((part) => part.replace(/^\n+|\n+$/g, "")).filter(Boolean).map((part) => {
    const paragraph = document.createElement("p");
    paragraph.append(...inline(part));
    return paragraph;
  });
}

function inline(text) {
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(/`([^`\n]+)`|\*\*([^*\n]+)\*\*/g)) {
    nodes.push(text.slice(from, match.index));
    const node = document.createElement(match[1] === undefined ? "strong" : "code");
    node.textContent = match[1] ?? match[2];
    nodes.push(node);
    from = match.index + match[0].length;
  }
  nodes.push(text.slice(from));
  return nodes.filter((node) => node !== "");
}
