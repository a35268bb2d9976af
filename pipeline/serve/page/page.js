"use strict";
// Sends videos to this server and shows the readings. Texts are inserted as text, never as markup.

const LOW_CONFIDENCE = 0.3;
const UNSURE = 0.5;
const SHOWN_CANDIDATES = 5;
const LINES = "application/x-ndjson";

const byId = (id) => document.getElementById(id);
const percent = (share) => `${Math.round(100 * share)} %`;
/** A share that is never shown as 0 % or 100 %, since it is never exactly that. */
const percentOfAll = (share) => (share < 0.005 ? "< 1 %" : share >= 0.995 ? "> 99 %" : percent(share));
const seconds = (s) => `${s.toFixed(s < 9.95 ? 1 : 0)} s`;
const clock = (s) => `${Math.floor(s / 60)}:${String(Math.floor(s % 60)).padStart(2, "0")}`;
const SPOKEN_LINES = 8;
const isChinese = (text) => /\p{Script=Han}/u.test(text);
const limits = { max_upload_mb: Infinity, max_video_s: Infinity };

function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

/** Announces words to screen readers; `text` is read in its own language. */
function speak(words, text = "") {
  const line = element("p", words);
  if (text) {
    line.append(" ", inItsLanguage(element("span", text)));
  }
  byId("live").append(line);
  while (byId("live").children.length > SPOKEN_LINES) {
    byId("live").firstElementChild.remove();
  }
}

function inItsLanguage(node) {
  if (isChinese(node.textContent)) {
    node.lang = "zh";
  }
  return node;
}

function show(node, isShown = true) {
  node.hidden = !isShown;
  return node;
}

/** A video's card, from the upload to the text. */
class Reading {
  constructor(file) {
    this.file = file;
    this.item = byId("reading").content.firstElementChild.cloneNode(true);
    this.find("h3").textContent = file.name;
    this.find(".dismiss").addEventListener("click", () => this.dismiss());
    this.find(".dismiss").setAttribute("aria-label", `Remove ${file.name}`);
    this.find(".copy").setAttribute("aria-description", file.name);
    this.find(".copy").addEventListener("click", () => this.copy());
    this.video = this.find(".see video");
    this.address = URL.createObjectURL(file);
    this.addresses = [this.address];
    this.video.src = `${this.address}#t=0.001`; // shows the first picture instead of black
    this.video.setAttribute("aria-label", file.name);
    this.video.addEventListener("error", () => show(this.video, false)); // a format that only the server can decode
    byId("readings").prepend(this.item);
    show(byId("readings-section"));
  }

  find(selector) {
    return this.item.querySelector(selector);
  }

  send() {
    if (this.file.size > limits.max_upload_mb * 1e6) {
      this.fail({ message: `The file is too large: at most ${limits.max_upload_mb} MB. Choose a smaller file.` });
      return;
    }
    const form = new FormData();
    form.append("video", this.file, this.file.name);
    const request = new XMLHttpRequest(); // fetch does not report the progress of an upload
    this.request = request;
    let numRead = 0;
    request.upload.addEventListener("progress", (event) => this.uploaded(event.loaded / event.total));
    request.addEventListener("progress", () => {
      const end = request.responseText.lastIndexOf("\n") + 1;
      const lines = request.responseText.slice(numRead, end);
      numRead = end;
      if (request.status === 200) {
        lines.split("\n").filter(Boolean).forEach((line) => this.hear(JSON.parse(line)));
      }
    });
    request.addEventListener("load", () => {
      if (request.status !== 200) {
        this.fail(refusalIn(request.responseText));
      } else if (!this.isOver) {
        this.fail({ message: "The server stopped before the video was read. Start it again." });
      }
    });
    request.addEventListener("error", () => {
      this.fail({ message: "The server cannot be reached. Is it still running?" });
    });
    request.open("POST", "/api/read");
    request.setRequestHeader("Accept", LINES);
    this.startedMs = performance.now();
    this.state("Uploading");
    speak(`${this.file.name}: uploading`);
    request.send(form);
  }

  uploaded(share) {
    this.find("progress").value = share;
    if (share === 1) {
      this.find("progress").removeAttribute("value");
      this.state("Uploaded");
    }
  }

  hear(event) {
    if (event.state === "waiting") {
      this.state(`Waiting: ${event.num_before} ${event.num_before === 1 ? "video" : "videos"} ahead`);
    } else if (event.state === "started") {
      this.state("Looking for the mouth");
    } else if (event.state === "mouth") {
      this.state("Reading");
      this.showMouth(event.mouth, event.mouth_fps);
    } else if (event.state === "failed") {
      this.fail(event);
    } else if (event.state === "done") {
      this.finish(event);
    }
  }

  state(text) {
    this.find(".state").textContent = text;
    this.find(".reading").setAttribute("aria-busy", "true");
  }

  over(text) {
    this.isOver = true;
    this.state(text);
    this.find(".reading").removeAttribute("aria-busy");
    show(this.find("progress"), false);
  }

  /** Plays the strip's frames, one at a time, at the speed of speech. */
  showMouth(strip, fps) {
    const button = this.find(".mouth");
    const picture = new Image();
    picture.addEventListener("load", () => {
      const count = Math.round(picture.naturalWidth / picture.naturalHeight);
      button.style.backgroundImage = `url("${strip}")`;
      show(button.parentElement);
      const end = { backgroundPosition: `${-count * button.clientHeight}px 0` };
      const motion = button.animate([{ backgroundPosition: "0 0" }, end], {
        duration: (1000 * count) / fps, easing: `steps(${count})`, iterations: Infinity,
      });
      const play = (isPlaying) => {
        button.setAttribute("aria-pressed", String(isPlaying));
        if (isPlaying) { motion.play(); return; }
        motion.pause();
        // a pause waits for the next drawn picture, and the mouth could move until then; setting the time ends the wait
        motion.currentTime = motion.currentTime;
      };
      button.addEventListener("click", () => play(motion.playState !== "running"));
      play(!matchMedia("(prefers-reduced-motion: reduce)").matches);
    });
    picture.src = strip;
  }

  finish(reading) {
    this.over("");
    this.answer = reading.text;
    const text = this.find(".text");
    text.textContent = reading.text || "The model found no words.";
    text.classList.toggle("none", !reading.text);
    inItsLanguage(text);
    this.showCharacters(text, reading);
    this.offer(reading.captions || {});
    if (reading.confidence !== null && reading.text) {
      const isLow = reading.confidence < LOW_CONFIDENCE;
      show(this.find(".sure")).classList.toggle("low", isLow);
      this.find(".sure .bar > span").style.width = `${100 * reading.confidence}%`;
      this.find(".sure p").textContent = `${percent(reading.confidence)} confidence per character${isLow ? " (a guess)" : ""}`;
    }
    this.showSegments(reading.segments);
    this.showCandidates(reading.segments);
    this.showSeconds(reading.seconds);
    show(this.find(".tools"), Boolean(reading.text));
    show(this.find(".copy"), Boolean(navigator.clipboard));
    speak(`${this.file.name}:`, text.textContent);
  }

  /** Puts each character into its own element, with time and alternatives, where the model gives them. */
  showCharacters(text, reading) {
    let place = 0;
    const parts = [];
    for (const segment of reading.segments.filter((one) => one.characters?.length)) {
      const start = reading.text.indexOf(segment.text, place);
      if (start < 0) {
        return; // the text of some scripts is joined without spaces
      }
      parts.push(reading.text.slice(place, start), ...segment.characters.map((one) => this.character(one)));
      place = start + segment.text.length;
    }
    if (parts.length) {
      text.replaceChildren(...parts, reading.text.slice(place));
      show(this.find(".doubt"));
    }
  }

  character(one) {
    if (!one.text.trim()) {
      return one.text;
    }
    const others = one.alternatives.slice(0, 3).filter((other) => other.share >= 0.005);
    const node = element("span", one.text, one.confidence < UNSURE ? "unsure" : "");
    node.title = `${seconds(one.start_s)} to ${seconds(one.end_s)}, ${percentOfAll(one.confidence)} sure`
      + (others.length ? `; else ${others.map((other) => `${other.text.trim() || "a space"} ${percent(other.share)}`).join(", ")}` : "");
    node.addEventListener("click", () => {
      this.video.currentTime = one.start_s;
      this.video.play();
    });
    return node;
  }

  /** Links to captions, which the browser saves under the video's name. */
  offer(captions) {
    const stem = this.file.name.replace(/\.[^.]*$/, "");
    for (const [ending, content] of Object.entries(captions)) {
      const link = element("a", `Captions (${ending.toUpperCase()})`, "link");
      link.href = URL.createObjectURL(new Blob([content], { type: "text/plain" }));
      link.download = `${stem}.${ending}`;
      this.addresses.push(link.href);
      this.find(".files").append(link);
    }
  }

  showSegments(segments) {
    if (segments.length < 2) {
      return;
    }
    const list = show(this.find(".segments"));
    for (const segment of segments) {
      const line = element("li");
      const time = element("button", `${clock(segment.start_s)} – ${clock(segment.end_s)}`, "link num");
      time.type = "button";
      time.setAttribute("aria-label", `Play from ${clock(segment.start_s)}`);
      time.addEventListener("click", () => {
        this.video.currentTime = segment.start_s;
        this.video.play();
      });
      const isRead = segment.confidence !== null && segment.confidence !== undefined && segment.text;
      line.append(time, inItsLanguage(element("span", segment.text || segment.message || "–", segment.text ? "" : "quiet")),
        element("span", isRead ? percent(segment.confidence) : "", "quiet num"));
      list.append(line);
    }
  }

  showCandidates(segments) {
    const list = this.find(".candidates");
    for (const segment of segments) {
      const [own, ...others] = segment.candidates || [];
      if (others.length) {
        const time = segments.length > 1 ? `${clock(segment.start_s)} ` : "";
        list.append(element("li", `${time}“${own.text}”: ${percentOfAll(own.share)} of the probability. Next candidates:`, "of"));
      }
      for (const other of others.slice(0, SHOWN_CANDIDATES)) {
        const line = element("li");
        line.append(inItsLanguage(element("span", other.text || "(nothing)")), element("span", percentOfAll(other.share), "quiet num"));
        list.append(line);
      }
    }
    show(this.find("details"), list.children.length > 0);
  }

  showSeconds(spent) {
    const list = show(this.find(".seconds"));
    const names = { upload: "upload", waiting: "waiting", mouth: "finding the mouth", reading: "reading" };
    const parts = Object.keys(names).filter((part) => part !== "waiting" || spent.waiting >= 0.05);
    const pairs = [["total", (performance.now() - this.startedMs) / 1000], ...parts.map((part) => [names[part], spent[part]])];
    for (const [name, s] of pairs) {
      const pair = element("div");
      pair.append(element("dt", name), element("dd", seconds(s)));
      list.append(pair);
    }
  }

  fail(refusal) {
    this.over("Not read");
    show(this.find(".fault"));
    this.find(".message").textContent = refusal.message;
    this.find(".detail").textContent = refusal.detail || "";
    show(this.find(".detail"), Boolean(refusal.detail));
    speak(`${this.file.name}: ${refusal.message}`);
  }

  async copy() {
    let message = "Copied";
    try {
      await navigator.clipboard.writeText(this.answer);
    } catch {
      message = "The browser did not allow copying"; // it may be forbidden, or another window is in front
    }
    speak(message);
    this.find(".copy").textContent = message;
  }

  dismiss() {
    this.request?.abort();
    this.addresses.forEach((address) => URL.revokeObjectURL(address));
    this.item.remove();
    show(byId("readings-section"), byId("readings").children.length > 0);
    byId("file").focus();
    speak(`${this.file.name}: removed`);
  }
}

function refusalIn(answer) {
  try {
    const refusal = JSON.parse(answer);
    return typeof refusal.message === "string" ? refusal : { message: "The server reported an error.", detail: answer.slice(0, 300) };
  } catch {
    return { message: "The server reported an error.", detail: answer.slice(0, 300) };
  }
}

function read(files) {
  for (const file of files) {
    new Reading(file).send();
  }
}

function takeDrops() {
  let depth = 0;
  const hasFiles = (event) => [...event.dataTransfer.types].includes("Files");
  const mark = (change) => {
    depth = change === 0 ? 0 : Math.max(0, depth + change);
    document.body.classList.toggle("dragging", depth > 0);
  };
  addEventListener("dragenter", (event) => hasFiles(event) && mark(1));
  addEventListener("dragleave", (event) => hasFiles(event) && mark(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    mark(0);
    read(event.dataTransfer.files);
  });
}

async function introduce() {
  const health = await (await fetch("/api/health")).json();
  Object.assign(limits, health.limits);
  byId("model").textContent = `model ${health.model}`;
  byId("limits").textContent = `up to ${limits.max_upload_mb} MB and ${limits.max_video_s} s`;
}

byId("file").addEventListener("change", (event) => {
  read(event.target.files);
  event.target.value = ""; // the same file may be chosen again
});
takeDrops();
introduce();
