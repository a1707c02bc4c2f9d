/** Asks before something is done that cannot be undone. */

import { find, setText } from './dom.ts';

/** Whether the user agrees; `verb` is what the button says. */
export function confirmAction(question: string, verb: string): Promise<boolean> {
  const dialog = find('confirm', HTMLDialogElement);
  setText(find('confirm-question', HTMLElement), question);
  setText(find('confirm-yes', HTMLElement), verb);
  // Escape leaves it as it was.
  dialog.returnValue = 'no';
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), { once: true });
  });
}
