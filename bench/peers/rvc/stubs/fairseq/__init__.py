"""As much of fairseq as RVC's inference imports: it has no wheel that a current Python installs."""
