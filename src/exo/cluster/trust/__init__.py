"""Who belongs to the cluster when it spans a network: its authority, node certificates, join tokens, enrolment."""
