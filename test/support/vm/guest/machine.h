/* Processors, ACPI and the ways to end: what only some jobs need of the machine. */

#ifndef MACHINE_H
#define MACHINE_H

#include "platform.h"

#define MAX_PROCESSORS 16

/*
 * Starts all other processors, each of which runs `work` with its number from 1 on, and waits until `count` of them have
 * started. Returns how many have.
 */
u32 start_processors(u32 count, void (*work)(u32 processor));

/* Follows the tables from the RSDP on and reports signatures, checksums and what power management says. */
void report_acpi(void);

/* Ends the guest: poweroff, reset, i8042, triplefault, halt, lost (runs into nothing), spin. */
_Noreturn void end_guest(const char *how);

#endif
