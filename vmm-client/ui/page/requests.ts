/** Requests that change something. */

/** Sends one. Returns a sentence where it was refused. */
export async function post(path: string, body: object): Promise<string | undefined> {
  let response: Response;
  try {
    response = await fetch(path, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify(body),
    });
  } catch (error) {
    if (error instanceof TypeError) return 'the server of this page does not answer';
    throw error;
  }
  if (response.ok) return undefined;
  if (response.status === 401) location.assign('/login');
  const text = await response.text();
  try {
    const answer: unknown = JSON.parse(text);
    if (typeof answer === 'object' && answer !== null && 'error' in answer) return String(answer.error);
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
  }
  return `the server answers ${response.status}`;
}
