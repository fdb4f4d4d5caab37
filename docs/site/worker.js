/* Browsers start no Worker for pages that are opened as files. There the search runs in a hidden frame instead. */
(() => {
  if (location.protocol !== "file:") return;
  window.Worker = class extends EventTarget {
    onmessage = null;
    onerror = null;
    onmessageerror = null;
    #frame = document.createElement("iframe");
    #loaded;

    constructor(url) {
      super();
      this.addEventListener("message", (event) => this.onmessage?.(event));
      this.addEventListener("error", (event) => this.onerror?.(event));
      this.#frame.hidden = true;
      document.body.append(this.#frame);
      const inside = this.#frame.contentWindow;
      inside.postMessage = (data) => this.#deliver(this, MessageEvent, data);
      const script = inside.document.createElement("script");
      script.src = new URL(url, location).href;
      this.#loaded = new Promise((ready) => (script.onload = ready));
      script.onerror = () => this.dispatchEvent(new ErrorEvent("error", { message: `${url} cannot be loaded` }));
      inside.document.head.append(script);
    }

    postMessage(data) {
      this.#loaded.then(() => {
        const inside = this.#frame.contentWindow;
        if (inside) this.#deliver(inside, inside.MessageEvent, data);
      });
    }

    /* As between threads: the receiver gets a copy, and later. */
    #deliver(to, Event, data) {
      const copy = structuredClone(data);
      setTimeout(() => to.dispatchEvent(new Event("message", { data: copy })));
    }

    terminate() {
      this.#frame.remove();
    }
  };
})();
