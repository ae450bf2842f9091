import { ENDED, NO_TOKEN, address, missing, say } from "./socket.js";

async function start() {
  const url = address();
  if (url === null) return say(NO_TOKEN);
  let RFB;
  try {
    RFB = (await import("./vendor/novnc/core/rfb.js")).default;
  } catch {
    return say(missing("noVNC"));
  }
  const keys = document.getElementById("keys");
  const rfb = new RFB(document.getElementById("screen"), url, { wsProtocols: ["binary"] });
  rfb.scaleViewport = true;
  rfb.addEventListener("connect", () => {
    say("Connected");
    keys.disabled = false;
    rfb.focus();
  });
  rfb.addEventListener("desktopname", (event) => say(`Connected to ${event.detail.name}`));
  rfb.addEventListener("disconnect", () => {
    keys.disabled = true;
    say(ENDED);
  });
  keys.addEventListener("click", () => {
    rfb.sendCtrlAltDel();
    rfb.focus();
  });
}

start();
