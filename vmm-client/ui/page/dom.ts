/** Small tools for the document. Text goes in as text, never as markup: names and consoles are anybody's. */

/** Elements by tag, with a class and what is in them. */
export function make<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  className = '',
  ...children: readonly (Node | string)[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  if (className !== '') element.className = className;
  element.append(...children);
  return element;
}

/** Sets a text where it changed: a change is announced by screen readers, and loses what is selected. */
export function setText(element: Element, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

export function setHidden(element: HTMLElement, hidden: boolean): void {
  if (element.hidden !== hidden) element.hidden = hidden;
}

export function setClass(element: Element, className: string): void {
  if (element.className !== className) element.className = className;
}

/** An element that the document has from the start. */
export function find<E extends Element>(id: string, type: new () => E): E {
  const element = document.getElementById(id);
  if (!(element instanceof type)) throw new Error(`the document has no ${id}`);
  return element;
}

/** What a view of one thing is: an element that can be brought up to date. */
export interface View<T> {
  readonly element: HTMLElement;
  update(value: T): void;
  /** It is taken away. */
  close?(): void;
}

/** One view a value, kept by key, in the order of the values. */
export class ViewList<T> {
  readonly #parent: HTMLElement;
  readonly #keyOf: (value: T) => string;
  readonly #create: (value: T) => View<T>;
  readonly #views = new Map<string, View<T>>();

  constructor(parent: HTMLElement, keyOf: (value: T) => string, create: (value: T) => View<T>) {
    this.#parent = parent;
    this.#keyOf = keyOf;
    this.#create = create;
  }

  update(values: readonly T[]): void {
    const keys = new Set(values.map(this.#keyOf));
    for (const [key, view] of this.#views) {
      if (keys.has(key)) continue;
      view.element.remove();
      view.close?.();
      this.#views.delete(key);
    }
    for (const value of values) {
      const key = this.#keyOf(value);
      let view = this.#views.get(key);
      if (view === undefined) {
        view = this.#create(value);
        this.#views.set(key, view);
        this.#parent.append(view.element);
      }
      view.update(value);
    }
    // What is moved loses the focus: while somebody is in the list its order stays.
    if (this.#parent.contains(document.activeElement)) return;
    const ordered = values.map((value) => this.#views.get(this.#keyOf(value))?.element);
    for (const [index, element] of ordered.entries()) {
      const present = this.#parent.children[index];
      if (element !== undefined && present !== element) this.#parent.insertBefore(element, present ?? null);
    }
  }
}
