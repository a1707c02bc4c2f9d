/** Asks before something is done that cannot be undone. */

import { find, setText } from './dom.ts';

/** Answers the question before with no. */
let leave: () => void = () => undefined;

/** Whether the user agrees; `verb` is what the button says. */
export function confirmAction(question: string, verb: string): Promise<boolean> {
  const dialog = find('confirm', HTMLDialogElement);
  // The end of a dialog is told later: a question that comes before that was not agreed to.
  leave();
  setText(find('confirm-question', HTMLElement), question);
  setText(find('confirm-yes', HTMLElement), verb);
  // Escape leaves it as it was.
  dialog.returnValue = 'no';
  dialog.showModal();
  return new Promise((resolve) => {
    leave = () => resolve(false);
    dialog.onclose = () => {
      if (!dialog.open) resolve(dialog.returnValue === 'yes');
    };
  });
}
