/*
 * Processors in different states. The first one, 32 bits and flat, takes the pin of the serial port to vector 0x41 and a
 * timer to vector 0x42, starts the second, reports, and waits for its orders; then it tells which interrupts wait for it,
 * wakes the second by an NMI and starts the third.
 *
 *     port 0xe0  "the second has been started"    0xe4  vectors 0x40 to 0x5f that wait    0xe8  the end
 *          0xf0  from a processor that was started: its APIC id    0xf4  from one that was woken
 *     0x7000  processors that were started    0x7004  that were woken    0x7008  set by the test: go on
 */
    .code16
    /* At 0x1000, in real mode, where a startup interrupt with vector 1 begins; segments from 0, but for cs. */
ap:
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %ss
    mov $0x3000, %sp
    movw $(nmi - ap), 0x8
    movw $0x100, 0xa
    mov $1, %eax
    cpuid
    shr $24, %ebx
    mov %bl, %al
    out %al, $0xf0
    lock incl 0x7000
sleep:
    hlt
    jmp sleep
nmi:
    out %al, $0xf4
    lock incl 0x7004
    iret

    .org 0x200
    .code32
boot:
    /* Local APIC on; spurious vector 0xff. */
    movl $0x1ff, 0xfee000f0
    /* I/O APIC: pin 4, low half (vector 0x41, edge, not masked), high half (to APIC id 0). */
    movl $0x18, 0xfec00000
    movl $0x41, 0xfec00010
    movl $0x19, 0xfec00000
    movl $0, 0xfec00010
    /* Timer: deadline mode, vector 0x42; four times ebp ticks from now. */
    movl $0x40042, 0xfee00320
    rdtsc
    .rept 4
    add %ebp, %eax
    adc $0, %edx
    .endr
    mov $0x6e0, %ecx
    wrmsr
    mov $0x01000000, %eax
    call start
    mov $1, %ecx
    call wait
    mov $0xe0, %edx
    out %al, %dx
orders:
    pause
    cmpl $0, 0x7008
    je orders
    /* Until both interrupts have come. */
vectors:
    pause
    mov 0xfee00220, %eax
    mov %eax, %ecx
    and $6, %ecx
    cmp $6, %ecx
    jne vectors
    mov $0xe4, %edx
    out %eax, %dx
    movl $0x01000000, 0xfee00310
    movl $0x4400, 0xfee00300
    mov $0x02000000, %eax
    call start
    mov $2, %ecx
    call wait
woken:
    pause
    cmpl $1, 0x7004
    jne woken
    mov $0xe8, %edx
    out %al, %dx
stop:
    cli
    hlt
    jmp stop

    /* INIT and startup interrupt, vector 1, to the APIC id in the high byte of eax. */
start:
    mov %eax, 0xfee00310
    movl $0x4500, 0xfee00300
    mov %eax, 0xfee00310
    movl $0x4601, 0xfee00300
    ret
    /* Until ecx processors were started. */
wait:
    pause
    cmp %ecx, 0x7000
    jne wait
    ret
