/* Holds a pod's namespaces open and buries orphans of a shared process namespace, until it is told to end. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int number) { (void)number; _exit(0); }
static void bury(int number) { (void)number; while (waitpid(-1, 0, WNOHANG) > 0); }

int main(void) {
    signal(SIGINT, end);
    signal(SIGTERM, end); /* process 1 has no default handlers: without one, ending a pod would take its whole grace */
    signal(SIGCHLD, bury);
    for (;;) pause();
}
