import { ENDED, NO_TOKEN, address, missing, say } from "./socket.js";

async function start() {
  const url = address();
  if (url === null) return say(NO_TOKEN);
  let Terminal;
  try {
    ({ Terminal } = await import("./vendor/xterm/lib/xterm.mjs"));
  } catch {
    return say(missing("xterm.js"));
  }
  const terminal = new Terminal({ cols: 80, rows: 25, scrollback: 5000, cursorBlink: true });
  terminal.open(document.getElementById("screen"));
  const socket = new WebSocket(url, ["binary"]);
  socket.binaryType = "arraybuffer";
  const encoder = new TextEncoder();
  const send = (data) => {
    if (socket.readyState === WebSocket.OPEN) socket.send(data);
  };
  socket.addEventListener("open", () => {
    say("Connected");
    terminal.focus();
  });
  socket.addEventListener("message", (event) => terminal.write(new Uint8Array(event.data)));
  socket.addEventListener("close", (event) => say(event.reason ? `Ended: ${event.reason}` : ENDED));
  terminal.onData((text) => send(encoder.encode(text)));
  terminal.onBinary((text) => send(Uint8Array.from(text, (c) => c.charCodeAt(0))));
}

start();
