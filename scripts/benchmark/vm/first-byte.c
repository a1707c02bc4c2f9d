/*
 * first-byte COMMAND [ARGUMENT...]: starts a command and prints the microseconds from its start until the first byte of its
 * standard output, as `us=N`. Then it ends the command by SIGTERM and waits for it. A program of its own, because the time
 * that Node.js takes to start a process is not to be counted.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1e6 + now.tv_nsec / 1e3;
}

int main(int argc, char **argv) {
  int ends[2];
  if (argc < 2 || pipe(ends) != 0) return 2;
  double start = now_us();
  pid_t child = fork();
  if (child < 0) return 2;
  if (child == 0) {
    // Whoever kills this program means the command.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(ends[1], STDOUT_FILENO);
    close(ends[0]);
    close(ends[1]);
    execvp(argv[1], argv + 1);
    perror(argv[1]);
    _exit(127);
  }
  close(ends[1]);
  char byte, rest[4096];
  ssize_t got = read(ends[0], &byte, 1);
  double end = now_us();
  if (got == 1) printf("us=%.0f\n", end - start);
  else fprintf(stderr, "%s wrote nothing\n", argv[1]);
  kill(child, SIGTERM);
  while (read(ends[0], rest, sizeof rest) > 0) continue;
  waitpid(child, NULL, 0);
  return got == 1 ? 0 : 1;
}
