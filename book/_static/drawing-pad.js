// A canvas to draw on, by touch, by mouse or by keyboard.
"use strict";

const DrawingPad = (() => {
  const MOVES = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};

  /** Strokes are lists of points [x, y], in units of the canvas; what happens to them is told by `drawn(strokes)`,
   * while the pen is down, by `lifted()` and by `cleared()`. */
  return class {
    constructor(canvas, told) {
      Object.assign(this, {canvas, told, strokes: [], pen: null, cursor: [0.5, 0.5], picture: null});
      const point = (event) => [event.offsetX / canvas.clientWidth, event.offsetY / canvas.clientHeight];
      canvas.addEventListener("pointerdown", (event) => {
        canvas.setPointerCapture(event.pointerId);
        this.lower(point(event));
      });
      canvas.addEventListener("pointermove", (event) => { if (this.pen && event.buttons) this.move(point(event)); });
      canvas.addEventListener("pointerup", () => this.lift());
      canvas.addEventListener("pointercancel", () => this.lift());
      canvas.addEventListener("keydown", (event) => this.key(event));
      canvas.addEventListener("focus", () => this.paint());
      canvas.addEventListener("blur", () => { this.lift(); this.paint(); });
    }

    key(event) {
      if (event.key in MOVES) {
        this.move(this.cursor.map((c, k) => Math.min(Math.max(c + MOVES[event.key][k] / 28, 0), 1)));
      } else if (event.key === " ") {
        if (this.pen) this.lift(); else this.lower(this.cursor);
      } else if (["Escape", "Delete", "Backspace"].includes(event.key)) {
        this.clear();
      } else return;
      event.preventDefault();
    }

    lower(point) {
      this.pen = [point];
      this.strokes.push(this.pen);
      this.move(point);
    }

    move(point) {
      this.cursor = point;
      if (this.pen) {
        this.pen.push(point);
        this.told.drawn(this.strokes);
      }
      this.paint();
    }

    lift() {
      if (!this.pen) return;
      this.pen = null;
      this.told.lifted();
      this.paint();
    }

    clear() {
      this.show(null);
      this.told.cleared();
    }

    /** Show a canvas in the place of strokes, or nothing. */
    show(picture) {
      Object.assign(this, {strokes: [], pen: null, picture});
      this.paint();
    }

    paint() {
      const context = this.canvas.getContext("2d"), side = this.canvas.width, place = ([x, y]) => [x * side, y * side];
      context.fillStyle = "black";
      context.fillRect(0, 0, side, side);
      context.imageSmoothingEnabled = false;
      if (this.picture && !this.strokes.length) context.drawImage(this.picture, 0, 0, side, side);
      Object.assign(context, {strokeStyle: "white", lineWidth: side / 13, lineCap: "round", lineJoin: "round"});
      for (const stroke of this.strokes) {
        context.beginPath();
        stroke.forEach((point) => context.lineTo(...place(point)));
        context.stroke();
      }
      if (!this.canvas.matches(":focus-visible")) return;
      Object.assign(context, {strokeStyle: this.pen ? "#E69F00" : "#56B4E9", lineWidth: 3});
      context.beginPath();
      context.arc(...place(this.cursor), side / 26, 0, 2 * Math.PI);
      context.stroke();
    }
  };
})();
