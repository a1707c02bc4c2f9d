/**
 * Connects standard input and output with the Unix socket named by the first argument: the console of a machine inside
 * a machine as a process, so that tests treat it like one started here. Ends with the status in `@@vm ended STATUS@@`,
 * which the machine around it writes last.
 */

import { connect } from 'node:net';

const MARK_LENGTH = 32;
const socket = connect(process.argv[2]);
let tail = '';
process.stdin.pipe(socket);
socket.setEncoding('latin1');
socket.on('data', (text) => {
  process.stdout.write(text, 'latin1');
  tail += text;
  const end = /@@vm ended (\d+)@@/.exec(tail);
  if (end !== null) process.stdout.write('', () => process.exit(Number(end[1])));
  tail = tail.slice(-MARK_LENGTH);
});
socket.on('error', (error) => {
  process.stderr.write(`${error.message}\n`);
  process.exitCode = 1;
});
// The surrounding machine is gone.
socket.on('close', () => process.exit());
