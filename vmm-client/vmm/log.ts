/** What the machine tells people. A pino logger is one. */

export interface Log {
  info(message: string): void;
  info(details: object, message: string): void;
  warn(message: string): void;
  warn(details: object, message: string): void;
  error(message: string): void;
  error(details: object, message: string): void;
}
