"""The backbone and its files: `pretrain` trains it, and every network contains one."""
