/** What keys of a browser send to a serial console. Pure. */

/** What keys without a character send. Source: XTerm Control Sequences, PC-Style Function Keys. */
const KEYS: Readonly<Record<string, string>> = {
  Enter: '\r',
  Backspace: '\x7f',
  Escape: '\x1b',
  Delete: '\x1b[3~',
  ArrowUp: '\x1b[A',
  ArrowDown: '\x1b[B',
  ArrowRight: '\x1b[C',
  ArrowLeft: '\x1b[D',
  Home: '\x1b[H',
  End: '\x1b[F',
};

/** As in a KeyboardEvent. */
export interface KeyPress {
  readonly key: string;
  readonly ctrlKey: boolean;
  readonly altKey: boolean;
  readonly metaKey: boolean;
}

/** What a key sends to the guest; undefined where it is the browser's. */
export function textOfKey(event: KeyPress): string | undefined {
  const { key, ctrlKey, altKey, metaKey } = event;
  if (metaKey || altKey) return undefined;
  if (!ctrlKey) return [...key].length === 1 ? key : KEYS[key];
  // Ctrl-C and the others of ASCII, from @ to _.
  const code = key.length === 1 ? key.toUpperCase().charCodeAt(0) : 0;
  return code >= 0x40 && code <= 0x5f ? String.fromCharCode(code - 0x40) : undefined;
}
