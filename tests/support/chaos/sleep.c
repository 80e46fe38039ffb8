/* Sleep until a moment of the machine's own clock, before libfaketime in LD_PRELOAD.

   libfaketime 0.9.10, told to leave the monotonic clock alone, takes a moment of that clock for one of the clock that it
   fakes: after a jump every time.sleep of Python would end in EINVAL. */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *until, struct timespec *left)
{
    return syscall(SYS_clock_nanosleep, clock, flags, until, left) ? errno : 0;
}
