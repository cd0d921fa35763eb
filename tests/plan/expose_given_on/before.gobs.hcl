# with handed_on.gobs.hcl
