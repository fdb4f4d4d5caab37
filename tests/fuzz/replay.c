/* Runs the kept inputs through a target, without libFuzzer: any compiler will do. */
#include "fuzz.h"

#include <signal.h>

static char replayed[4096];

/* The name of the input. */
static void tell(void)
{
    ssize_t n = write(2, "\nat ", 4);
    n = write(2, replayed, strlen(replayed));
    n = write(2, "\n", 1);
    (void)n;
}

static void told(int number)
{
    tell();
    signal(number, SIG_DFL);
    raise(number);
}

static void run(const char *path)
{
    snprintf(replayed, sizeof replayed, "%s", path);
    FILE *f = fopen(path, "rb");
    MUST(f != NULL);
    static uint8_t data[1 << 20];
    size_t n = fread(data, 1, sizeof data, f);
    fclose(f);
    /* Exactly as long as the input, so that a read past its end is seen. Not from malloc: the input before may have
     * made it refuse. */
    void *exact = NULL;
    MUST(posix_memalign(&exact, sizeof(void *), n != 0 ? n : 1) == 0);
    memcpy(exact, data, n);
    LLVMFuzzerTestOneInput(exact, n);
    free(exact);
}

int main(int argc, char **argv)
{
    int n = 0;
    signal(SIGABRT, told);
    signal(SIGALRM, told);
#ifdef FUZZ_ASAN
    __sanitizer_set_death_callback(tell);
#else
    signal(SIGSEGV, told);
    signal(SIGBUS, told);
#endif
    for (int i = 1; i < argc; i++) {
        DIR *d = opendir(argv[i]);
        if (d == NULL) {
            run(argv[i]);
            n++;
            continue;
        }
        for (struct dirent *e; (e = readdir(d)) != NULL;) {
            if (e->d_name[0] != '.') {
                char path[4096];
                snprintf(path, sizeof path, "%s/%s", argv[i], e->d_name);
                alarm(20); /* a hang is a fault */
                run(path);
                n++;
            }
        }
        closedir(d);
    }
    printf("%d inputs\n", n);
    return n != 0 ? 0 : 1;
}
