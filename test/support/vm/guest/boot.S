/*
 * Every way into the test guest, and the way of its other processors. Whatever the machine set up before, from here on the
 * guest has its own descriptor table, page tables and stack.
 *
 *     0x100000  linux32_start   32-bit entry of the Linux boot protocol (esi = zero page)
 *     0x100200  linux64_start   64-bit entry of the same (rsi = zero page)
 *               pvh_start       PVH (ebx = hvm_start_info), found by the ELF note
 *
 * Sources: Linux Documentation/arch/x86/boot.rst; Xen docs/misc/pvh.pandoc, XEN_ELFNOTE_PHYS32_ENTRY = 18.
 */

#define BOOT_PVH 0
#define BOOT_LINUX32 1
#define BOOT_LINUX64 2

#define CODE32 0x08
#define CODE64 0x10
#define DATA 0x18

#define EFER 0xc0000080
#define EFER_LME 0x100
#define CR0_PE 1
#define CR0_PG 0x80000000
#define CR4_PAE 0x20

#define TRAMPOLINE 0x10000

    .section .head, "ax"
    .code32
    .globl linux32_start, linux64_start, pvh_start
linux32_start:
    movl %esi, %ebx
    movl $BOOT_LINUX32, %ebp
    jmp enter_long_mode
pvh_start:
    movl $BOOT_PVH, %ebp
enter_long_mode:
    cli
#ifdef FIRST_BYTE
    /* For who measures the time to here. The report's first line comes after memory was cleared. */
    movw $0x3f8, %dx
    movb $'\n', %al
    outb %al, %dx
#endif
    cld
    lgdt gdt_pointer
    movl $DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $page_tables, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $CR4_PAE, %eax
    movl %eax, %cr4
    movl $EFER, %ecx
    rdmsr
    orl $EFER_LME, %eax
    wrmsr
    movl %cr0, %eax
    orl $(CR0_PG | CR0_PE), %eax
    movl %eax, %cr0
    xorl %edx, %edx
    ljmp $CODE64, $start

    .code64
    .org 0x200
linux64_start:
    cli
    cld
    movq %rsi, %rbx
    /* The segments of the entry are part of the protocol: the guest reports them. */
    xorl %edx, %edx
    movw %cs, %dx
    shll $16, %edx
    movw %ds, %dx
    movl $BOOT_LINUX64, %ebp
    lgdt gdt_pointer
    movl $DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $page_tables, %eax
    movq %rax, %cr3
start:
    movl $bss_start, %edi
    movl $bss_end, %ecx
    subl %edi, %ecx
    shrl $3, %ecx
    xorl %eax, %eax
    rep stosq
    movl $stack_top, %esp
    movl %ebp, %edi
    movq %rbx, %rsi
    call guest_main
1:  hlt
    jmp 1b

/* What a started processor runs first, copied to TRAMPOLINE: SIPI enters it in real mode at TRAMPOLINE:0. */
    .globl trampoline, trampoline_end
    .code16
trampoline:
    cli
    movw %cs, %ax
    movw %ax, %ds
    lgdtl gdt_pointer_copy - trampoline
    movl %cr0, %eax
    orl $CR0_PE, %eax
    movl %eax, %cr0
    ljmpl $CODE32, $(TRAMPOLINE + trampoline32 - trampoline)
gdt_pointer_copy:
    .word gdt_end - gdt - 1
    .long gdt
    .code32
trampoline32:
    movl $DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $page_tables, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $CR4_PAE, %eax
    movl %eax, %cr4
    movl $EFER, %ecx
    rdmsr
    orl $EFER_LME, %eax
    wrmsr
    movl %cr0, %eax
    orl $(CR0_PG | CR0_PE), %eax
    movl %eax, %cr0
    ljmp $CODE64, $processor_start
trampoline_end:

    .code64
processor_start:
    movl $1, %edi
    lock xaddl %edi, processors_started
    /* 8 KiB of stack each; the first of them is for processor 1. */
    movl %edi, %eax
    incl %eax
    shll $13, %eax
    addl $processor_stacks, %eax
    movl %eax, %esp
    incl %edi
    call processor_main
2:  hlt
    jmp 2b

#ifdef PVH
    .section .note.Xen, "a", @note
    .align 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad pvh_start
#endif

    .data
    .align 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
    .long 0

/* The first GiB and the one with the devices, identity mapped by 2 MiB pages; reach() adds the others. */
    .align 4096
    .globl page_tables, directory_pointers
page_tables:
    .quad directory_pointers + 3
    .fill 511, 8, 0
directory_pointers:
    .quad first_directory + 3, 0, 0, device_directory + 3
    .fill 508, 8, 0
first_directory:
    .set page, 0
    .rept 512
    .quad (page << 21) + 0x83
    .set page, page + 1
    .endr
device_directory:
    .set page, 0
    .rept 512
    .quad 0xc0000000 + (page << 21) + 0x9b
    .set page, page + 1
    .endr

    .bss
    .align 16
    .fill 16384
stack_top:
    .globl processors_started
    .align 8
processors_started:
    .quad 0
processor_stacks:
    .fill 8192 * 16
    .section .note.GNU-stack, "", @progbits
