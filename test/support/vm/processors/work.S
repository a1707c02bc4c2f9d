/*
 * 32 bits, flat segments, no paging. Rounds of arithmetic and of accesses of every kind, each a step of one chain: a step
 * that is lost, doubled or half done changes all that follows.
 *
 *     ebp  rounds to go       eax  the chain      ebx  where its log is written, 0x6000 to 0x6fff
 *     0x4000  what is sent    0x5000  what is received
 *     ports   0xc0 read and written, 0xc4 strings written, 0xc8 strings read, 0xcc the end
 *     0xd0000000  memory of the device
 */
    .code32
work:
    mov $0x6000, %ebx
round:
    imul $1103515245, %eax, %eax
    add $12345, %eax
    mov %eax, (%ebx)
    mov %eax, 0x4000
    mov %eax, 0x4008
    add $4, %ebx
    and $0x6ffc, %ebx
    mov %eax, %ecx
    mov $0xc0, %edx
    out %eax, %dx
    in %dx, %eax
    xor %ecx, %eax
    mov $0x4000, %esi
    mov $13, %ecx
    mov $0xc4, %edx
    rep outsb
    mov $0x5000, %edi
    mov $7, %ecx
    mov $0xc8, %edx
    rep insb
    add 0x5000, %eax
    rol $3, %eax
    /* Written, read, changed by one instruction, copied to the device and from it. */
    mov %eax, 0xd0000000
    mov 0xd0000004, %ecx
    xor %ecx, %eax
    add %eax, 0xd0000008
    mov $0x4000, %esi
    mov $0xd0000010, %edi
    mov $5, %ecx
    rep movsb
    mov $0xd0000020, %esi
    mov $0x5010, %edi
    mov $3, %ecx
    rep movsl
    add 0x5018, %eax
    dec %ebp
    jnz round
    mov $0xcc, %edx
    out %eax, %dx
stop:
    cli
    hlt
    jmp stop
