"""What every covered instruction means: tables that read beside AMD's ISA documents, one module per encoding
family."""
