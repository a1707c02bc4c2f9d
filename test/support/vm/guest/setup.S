/*
 * A bzImage around the test guest: the header by which loaders know a Linux kernel, the real-mode code that old loaders
 * (QEMU's among them) start, and the guest itself from the third sector on. Built with -DKERNEL="path" of the guest as a
 * flat binary.
 *
 * Source: Linux Documentation/arch/x86/boot.rst, The Real-Mode Kernel Header.
 */

    .text
    .code16
    .org 0x1f1
    .byte 1                             /* setup_sects: one sector behind the first */
    .word 0                             /* root_flags */
    .long (kernel_end - kernel) / 16    /* syssize */
    .word 0, 0, 0                       /* ram_size, vid_mode, root_dev */
    .word 0xaa55                        /* boot_flag */
    .byte 0xeb, header_end - 1f         /* jump */
1:  .ascii "HdrS"
    .word 0x020f                        /* version 2.15 */
    .long 0                             /* realmode_swtch */
    .word 0, 0                          /* start_sys_seg, kernel_version */
    .byte 0, 1                          /* type_of_loader; loadflags: LOADED_HIGH */
    .word 0                             /* setup_move_size */
    .long 0x100000                      /* code32_start */
    .long 0, 0, 0                       /* ramdisk_image, ramdisk_size, bootsect_kludge */
    .word 0                             /* heap_end_ptr */
    .byte 0, 0                          /* ext_loader_ver, ext_loader_type */
    .long 0                             /* cmd_line_ptr */
    .long 0x7fffffff                    /* initrd_addr_max */
    .long 0x100000                      /* kernel_alignment */
    .byte 0, 20                         /* relocatable_kernel, min_alignment */
    .word 1                             /* xloadflags: XLF_KERNEL_64 */
    .long 2047                          /* cmdline_size */
    .long 0                             /* hardware_subarch */
    .quad 0                             /* hardware_subarch_data */
    .long 0, 0                          /* payload_offset, payload_length */
    .quad 0                             /* setup_data */
    .quad 0x100000                      /* pref_address */
    .long 0x300000                      /* init_size */
    .long 0                             /* handover_offset */
header_end:
    cli
    xorl %esi, %esi
    movw %ds, %si
    shll $4, %esi
    /* The descriptor table's address is linear, and where this code is only its segment tells. */
    leal gdt(%esi), %eax
    movl %eax, gdt_pointer + 2
    lgdtl gdt_pointer
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    movw $0x18, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    ljmpl $0x10, $0x100000
    .align 8
gdt:
    .quad 0, 0
    .quad 0x00cf9b000000ffff
    .quad 0x00cf93000000ffff
gdt_pointer:
    .word 31
    .long 0
    .org 0x400
kernel:
    .incbin KERNEL
    .align 16
kernel_end:
