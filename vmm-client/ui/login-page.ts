/** The page that asks for the token. It needs no script: a form that is sent, and a cookie that comes back. */

const MESSAGES = {
  ask: '',
  wrong: '<p role="alert" class="wrong">That is not the token.</p>',
} as const;

export function renderLogin(message: keyof typeof MESSAGES): string {
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>ringside: log in</title>
<link rel="icon" href="/icon.svg">
<link rel="stylesheet" href="/style.css">
</head>
<body>
<main class="login">
<h1>ringside</h1>
<form method="post" action="/login">
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
${MESSAGES[message]}
<button type="submit">Log in</button>
</form>
</main>
</body>
</html>
`;
}
