"""Do the backends work on this kernel? Real packets in throwaway network namespaces."""
