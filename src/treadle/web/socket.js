// Where the WebSocket of this page is: on the same host, at what the query's `path` names.

const state = document.getElementById("state");

export function say(text) {
  state.textContent = text;
}

export function address() {
  const path = new URLSearchParams(location.search).get("path") || "";
  if (!path.includes("token=")) return null;
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  return `${scheme}//${location.host}/${path.replace(/^[/\\]+/, "")}`;
}

export const ENDED = "The console has ended. Ask for a new link to connect again.";
export const NO_TOKEN = "This page needs a link with a token: ask for a console.";

export function missing(name) {
  return `${name} is not part of this installation (bin/web brings it). ` +
    "Connect with another client, or with: treadle console VM";
}
