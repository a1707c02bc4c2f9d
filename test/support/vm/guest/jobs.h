/* The jobs that are no disk's (those are in blk.h). */

#ifndef JOBS_H
#define JOBS_H

void job_info(void);
void job_memory(void);
void job_cpus(void);
void job_serial(void);
void job_echo(void);
void job_exits(void);
void job_net(void);
void job_fs(void);
void job_vsock(void);
void job_hostile(void);

#endif
