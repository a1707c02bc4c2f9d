/** The last minutes of a number as a line. */

const SVG = 'http://www.w3.org/2000/svg';
/** One a second. */
const POINTS = 120;
const HEIGHT = 100;

/** A path over the width of POINTS, the newest at the right, the largest at the top. Pure. */
export function sparkPath(values: readonly number[]): string {
  const top = Math.max(1, ...values);
  const left = POINTS - values.length;
  const points = values.map((value, index) => `${left + index},${(HEIGHT * (1 - value / top)).toFixed(1)}`);
  return points.length < 2 ? '' : `M${points.join('L')}`;
}

export class Sparkline {
  readonly element: SVGSVGElement;
  readonly #path: SVGPathElement;
  #values: number[] = [];

  constructor() {
    this.element = document.createElementNS(SVG, 'svg');
    this.element.setAttribute('class', 'spark');
    this.element.setAttribute('viewBox', `0 -4 ${POINTS} ${HEIGHT + 8}`);
    this.element.setAttribute('preserveAspectRatio', 'none');
    // What it shows is in words beside it.
    this.element.setAttribute('aria-hidden', 'true');
    this.#path = document.createElementNS(SVG, 'path');
    this.element.append(this.#path);
  }

  add(value: number): void {
    this.#values = [...this.#values, value].slice(-POINTS);
    this.#path.setAttribute('d', sparkPath(this.#values));
  }
}
