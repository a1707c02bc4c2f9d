/*
 * 32 bits, flat segments, no paging. Writes to the pages whose addresses are listed from 0x2000 on, up to a zero, says so
 * at port 0xd8, waits until it is answered, and does the same with the list that is there then. With an address of 1 in
 * the list it writes to 2 MiB from 0x100000 on, in no order and without end; every 256 writes it reads port 0xdc.
 */
    .code32
dirty:
    mov $0x2000, %esi
next:
    mov (%esi), %edi
    add $4, %esi
    cmp $1, %edi
    je wild
    test %edi, %edi
    jz done
    incl 0x7fc(%edi)
    jmp next
done:
    mov $0xd8, %edx
    in %dx, %eax
    jmp dirty
wild:
    imul $1103515245, %eax, %eax
    add $12345, %eax
    mov %eax, %edi
    shr $10, %edi
    and $0x1ffffc, %edi
    add %eax, 0x100000(%edi)
    inc %ecx
    test $0xff, %ecx
    jnz wild
    mov %eax, %ebx
    mov $0xdc, %edx
    in %dx, %eax
    mov %ebx, %eax
    jmp wild
