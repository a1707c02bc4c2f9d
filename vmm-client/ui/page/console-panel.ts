/**
 * The console of a machine: what the guest prints, and, where it is allowed, what is typed. Keys that are pressed in the
 * screen go to the guest one by one; Tab does not, so that nobody is caught in it. A line below is for phones.
 */

import { make, setText } from './dom.ts';
import { textOfKey } from './keys.ts';
import type { ConsoleEvent, MachineView } from './model.ts';
import { post } from './requests.ts';
import { Screen } from './screen.ts';

const REDRAW_MS = 100;

export class ConsolePanel {
  readonly element: HTMLElement;
  readonly #key: string;
  readonly #screen = new Screen();
  readonly #view = make('pre');
  readonly #before = document.createTextNode('');
  readonly #cursor = make('span', 'cursor');
  readonly #after = document.createTextNode('');
  readonly #note = make('p', 'small');
  readonly #events: EventSource;
  #redraw: number | undefined;
  #typed = '';
  #sending = false;

  constructor(machine: MachineView, control: boolean) {
    this.#key = machine.key;
    this.#view.tabIndex = 0;
    this.#view.setAttribute('role', 'log');
    this.#view.setAttribute('aria-live', 'off');
    this.#view.setAttribute('aria-label', `Console of ${machine.name}`);
    this.#view.append(this.#before, this.#cursor, this.#after);
    this.#note.setAttribute('role', 'status');
    this.element = make('div', 'console', this.#view, this.#note);
    if (control) this.#addInput(machine.name);
    this.#events = new EventSource(`/api/machines/${this.#key}/console`);
    // Every connection begins with all that is kept.
    this.#events.addEventListener('open', () => {
      this.#screen.reset();
      setText(this.#note, '');
      this.#draw();
    });
    this.#events.addEventListener('console', (event) => this.#take(JSON.parse(event.data) as ConsoleEvent));
    this.#events.addEventListener('error', () => setText(this.#note, 'The console broke off; trying again.'));
  }

  close(): void {
    this.#events.close();
    clearTimeout(this.#redraw);
  }

  #take(event: ConsoleEvent): void {
    if ('end' in event) {
      this.#events.close();
      setText(this.#note, `No more comes: ${event.end}`);
      return;
    }
    this.#screen.write(event.text);
    this.#redraw ??= setTimeout(() => this.#draw(), REDRAW_MS);
  }

  #draw(): void {
    clearTimeout(this.#redraw);
    this.#redraw = undefined;
    const view = this.#view;
    const isAtEnd = view.scrollTop + view.clientHeight >= view.scrollHeight - 4;
    const { lines } = this.#screen;
    const { line, column } = this.#screen.cursor;
    const present = lines[line] ?? '';
    const above = lines.slice(0, line).map((each) => `${each}\n`);
    const below = lines.slice(line + 1).map((each) => `\n${each}`);
    this.#before.data = above.join('') + present.slice(0, column).padEnd(column);
    this.#cursor.textContent = present[column] ?? ' ';
    this.#after.data = present.slice(column + 1) + below.join('');
    if (isAtEnd) view.scrollTop = view.scrollHeight;
  }

  #addInput(name: string): void {
    this.#view.addEventListener('keydown', (event) => {
      const text = textOfKey(event);
      // What is selected is to be copied.
      const copies = event.ctrlKey && event.key.toLowerCase() === 'c' && getSelection()?.isCollapsed === false;
      if (text === undefined || copies) return;
      event.preventDefault();
      void this.#send(text);
    });
    this.#view.addEventListener('paste', (event) => {
      event.preventDefault();
      void this.#send((event.clipboardData?.getData('text') ?? '').replace(/\r?\n/g, '\r'));
    });
    const line = make('input');
    line.type = 'text';
    line.autocomplete = 'off';
    line.spellcheck = false;
    line.setAttribute('autocapitalize', 'off');
    line.setAttribute('aria-label', `A line for the console of ${name}`);
    const send = make('button', '', 'Send');
    const keys = [
      ['Tab', '\t'],
      ['Ctrl-C', '\x03'],
    ] as const;
    const buttons = keys.map(([label, text]) => {
      const button = make('button', '', label);
      button.type = 'button';
      button.addEventListener('click', () => void this.#send(text));
      return button;
    });
    const form = make('form', '', line, send, ...buttons);
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      void this.#send(`${line.value}\r`);
      line.value = '';
    });
    this.element.append(form);
  }

  /** Sends what was typed, in order: what is typed meanwhile goes together. */
  async #send(text: string): Promise<void> {
    this.#typed += text;
    if (this.#sending) return;
    this.#sending = true;
    while (this.#typed !== '') {
      const part = this.#typed.slice(0, 2048);
      this.#typed = this.#typed.slice(part.length);
      const refusal = await post(`/api/machines/${this.#key}/console`, { text: part });
      setText(this.#note, refusal ?? '');
      if (refusal !== undefined) this.#typed = '';
    }
    this.#sending = false;
  }
}
