# with redelegation.gobs.hcl
