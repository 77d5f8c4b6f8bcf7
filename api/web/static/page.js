// Shows what has changed without a reload: #live names where its newer self is. Without this, the page reloads itself.
"use strict";

const SECONDS = 3;
// A page that takes the server long is asked for less often: this many times as long as it took.
const PAUSES = 20;

function putBackFocus(id) {
  const element = id && document.getElementById(id);
  if (element) element.focus({ preventScroll: true });
}

function say(status) {
  const element = document.getElementById("status");
  if (element && status && element.textContent !== status) element.textContent = status;
}

async function refresh() {
  const live = document.getElementById("live");
  const url = live && live.dataset.refresh;
  if (!url) return;
  const began = performance.now();
  if (!document.hidden) {
    try {
      const answer = await fetch(url, { credentials: "same-origin" });
      // The log-in is over.
      if (answer.redirected) return location.reload();
      if (answer.ok) show(live, await answer.text());
    } catch {
      // The server is away; the next look may find it.
    }
  }
  setTimeout(refresh, Math.max(1000 * SECONDS, PAUSES * (performance.now() - began)));
}

function show(live, text) {
  const fresh = new DOMParser().parseFromString(text, "text/html").getElementById("live");
  if (!fresh || fresh.outerHTML === live.outerHTML) return;
  const focused = live.contains(document.activeElement) ? document.activeElement.id : "";
  live.replaceWith(document.adoptNode(fresh));
  putBackFocus(focused);
  say(fresh.dataset.status);
}

// A form that takes its time says so, and is sent once.
document.addEventListener("submit", (event) => {
  const button = event.target.querySelector("button");
  if (!button) return;
  setTimeout(() => {
    button.disabled = true;
    if (event.target.dataset.busy) button.textContent = event.target.dataset.busy;
  });
});
// Back from the next page: the form may be sent again.
addEventListener("pageshow", () => document.querySelectorAll("button:disabled").forEach((each) => { each.disabled = false; }));

setTimeout(refresh, 1000 * SECONDS);
