"""Raw packets: TCP-shaped packets read and written below the kernel's TCP, without a connection behind them."""
