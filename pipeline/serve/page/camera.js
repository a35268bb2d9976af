"use strict";
// Uses functions of page.js, which must be loaded first: read, show, byId, clock, speak, limits.

const RECORDED_AS = ["video/webm;codecs=vp8", "video/webm", "video/mp4"];

/** The camera: preview, record, send; it is switched off as soon as it is closed. */
class Camera {
  constructor() {
    byId("open-camera").addEventListener("click", () => this.open());
    byId("close-camera").addEventListener("click", () => this.close());
    byId("record").addEventListener("click", () => (this.recorder ? this.recorder.stop() : this.record()));
    addEventListener("pagehide", () => this.close());
  }

  async open() {
    if (this.isOpening) {
      return; // a second stream would stay on unnoticed
    }
    this.isOpening = true;
    show(byId("trouble"), false);
    try {
      if (!navigator.mediaDevices || !window.MediaRecorder) {
        throw new DOMException("", "NotSupportedError");
      }
      this.stream = await navigator.mediaDevices.getUserMedia({
        audio: false, video: { width: { ideal: 1280 }, height: { ideal: 720 }, frameRate: { ideal: 30 } },
      });
    } catch (error) {
      this.complain(error);
      return;
    } finally {
      this.isOpening = false;
    }
    this.stream.getTracks().forEach((track) => track.addEventListener("ended", () => this.lose()));
    byId("preview").srcObject = this.stream;
    show(byId("camera"));
    show(byId("ways"), false);
    byId("record").focus();
  }

  complain(error) {
    const words = {
      NotAllowedError: "The browser is not allowed to use the camera. Allow it in the address bar and try again.",
      NotFoundError: "No camera was found. Connect one and try again.",
      NotReadableError: "Another program is using the camera. Close it and try again.",
      NotSupportedError: "The browser allows the camera only on 127.0.0.1 or over https.",
    };
    show(byId("trouble")).textContent = words[error.name] || `The camera cannot be used (${error.name}).`;
  }

  record() {
    const mimeType = RECORDED_AS.find((kind) => MediaRecorder.isTypeSupported(kind));
    const parts = [];
    const recorder = new MediaRecorder(this.stream, { mimeType, videoBitsPerSecond: 5_000_000 });
    this.recorder = recorder;
    const startedMs = performance.now();
    // 1 s less, so that the last picture is not past the limit
    const longestMs = 1000 * Math.max(1, Math.min(limits.max_video_s, 3600) - 1);
    const tick = () => {
      const ms = performance.now() - startedMs;
      byId("timer").textContent = clock(ms / 1000);
      if (ms >= longestMs && recorder.state === "recording") {
        recorder.stop();
      }
    };
    const ticking = setInterval(tick, 200);
    tick();
    show(byId("timer"));
    byId("record").textContent = "Stop and read";
    byId("record").classList.add("stop");
    speak("Recording");
    recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
    recorder.addEventListener("stop", () => {
      clearInterval(ticking);
      this.recorder = undefined;
      show(byId("timer"), false);
      byId("record").textContent = "Record";
      byId("record").classList.remove("stop");
      if (!this.isDropped) {
        const ending = recorder.mimeType.includes("mp4") ? "mp4" : "webm";
        const time = new Date().toTimeString().slice(0, 8).replaceAll(":", "-");
        read([new File(parts, `camera ${time}.${ending}`, { type: recorder.mimeType.split(";")[0] })]);
      }
    });
    this.isDropped = false;
    recorder.start();
  }

  /** Called if the camera is unplugged or forbidden while it is open. */
  lose() {
    const wasRecording = Boolean(this.recorder);
    this.close();
    show(byId("trouble")).textContent = `The camera was disconnected.${wasRecording ? " The recording was not read. Record again." : ""}`;
  }

  /** Closes the camera and drops the current recording. */
  close() {
    this.isDropped = true;
    if (this.recorder) {
      this.recorder.stop();
    }
    this.stream?.getTracks().forEach((track) => track.stop());
    this.stream = undefined;
    byId("preview").srcObject = null;
    if (!byId("camera").hidden) {
      show(byId("camera"), false);
      show(byId("ways"));
      byId("open-camera").focus();
    }
  }
}

new Camera();
