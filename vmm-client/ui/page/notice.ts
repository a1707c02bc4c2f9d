/** The place where the page says what came of a request. */

import { find, setHidden, setText } from './dom.ts';

/** Says it, until the next time; an empty text says nothing. */
export function announce(text: string): void {
  const notice = find('notice', HTMLElement);
  setText(notice, text);
  setHidden(notice, text === '');
}
