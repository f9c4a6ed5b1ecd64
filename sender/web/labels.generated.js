/** Labels of states, choices and advice. Generated from sender/labels.py by `make docs`: don't edit. */

/** Machine states, those that need attention first. @type {Record<string, {text: string, tone: string}>} */
export const MACHINE_STATES = {
  "failed": {"text": "Failed", "tone": "bad"},
  "lost": {"text": "Lost", "tone": "bad"},
  "absent": {"text": "Absent", "tone": "bad"},
  "dropped": {"text": "Dropped", "tone": "bad"},
  "slow": {"text": "Slow", "tone": "warn"},
  "tail": {"text": "Straggler", "tone": "warn"},
  "receiving": {"text": "Receiving", "tone": "busy"},
  "capturing": {"text": "Capturing", "tone": "busy"},
  "joined": {"text": "Joined", "tone": "soft"},
  "assigned": {"text": "Assigned", "tone": "soft"},
  "complete": {"text": "Complete", "tone": "good"},
  "waking": {"text": "Waking", "tone": "soft"},
  "booting": {"text": "Booting", "tone": "soft"},
  "idle": {"text": "Ready", "tone": "calm"},
  "offline": {"text": "Offline", "tone": "off"}
};

/** Phases of a cast. @type {Record<string, {text: string, tone: string}>} */
export const CAST_PHASES = {
  "planned": {"text": "Planned", "tone": "calm"},
  "gathering": {"text": "Gathering", "tone": "soft"},
  "casting": {"text": "Casting", "tone": "busy"},
  "tail": {"text": "Finishing stragglers", "tone": "warn"},
  "done": {"text": "Done", "tone": "good"},
  "failed": {"text": "Failed", "tone": "bad"},
  "cancelled": {"text": "Cancelled", "tone": "calm"}
};

/** Shown in place of the phase while a live cast is paused. @type {{text: string, tone: string}} */
export const PAUSED = {
  "text": "Paused",
  "tone": "warn"
};

/** States of an image in the library. @type {Record<string, {text: string, tone: string}>} */
export const IMAGE_STATES = {
  "available": {"text": "Available", "tone": "good"},
  "remote": {"text": "Not fetched yet", "tone": "calm"},
  "fetching": {"text": "Fetching", "tone": "busy"},
  "damaged": {"text": "Damaged", "tone": "bad"},
  "gone": {"text": "Gone", "tone": "off"}
};

/** Sources of images. @type {Record<string, string>} */
export const IMAGE_ORIGINS = {
  "packed": "packed from a disk",
  "imported": "conversion of",
  "captured": "capture of",
  "fetched": "copy of"
};

/** States of captures. @type {Record<string, {text: string, tone: string}>} */
export const CAPTURE_STATES = {
  "uploading": {"text": "Uploading", "tone": "busy"},
  "proving": {"text": "Proving", "tone": "busy"},
  "planned": {"text": "Waits for the machine", "tone": "soft"},
  "failed": {"text": "Failed", "tone": "bad"},
  "cancelled": {"text": "Cancelled", "tone": "off"},
  "complete": {"text": "Complete", "tone": "good"}
};

/** States of uploads. @type {Record<string, {text: string, tone: string}>} */
export const UPLOAD_STATES = {
  "receiving": {"text": "Uploading", "tone": "busy"},
  "checking": {"text": "Checking", "tone": "busy"},
  "unpacking": {"text": "Reading the disk", "tone": "busy"},
  "packing": {"text": "Packing", "tone": "busy"},
  "waiting": {"text": "Waits for its turn", "tone": "soft"},
  "failed": {"text": "Failed", "tone": "bad"},
  "done": {"text": "In the library", "tone": "good"}
};

/** States of exports. @type {Record<string, {text: string, tone: string}>} */
export const EXPORT_STATES = {
  "converting": {"text": "Converting", "tone": "busy"},
  "waiting": {"text": "Waits for its turn", "tone": "soft"},
  "failed": {"text": "Failed", "tone": "bad"},
  "done": {"text": "Ready", "tone": "good"}
};

/** States of an image as the source of clones. @type {Record<string, string>} */
export const GENERALISATIONS = {
  "no_system": "no operating system was recognised",
  "generalised": "generalised: nothing of the reference machine is left",
  "not_generalised": "not generalised: all machines get the identity of the reference machine, such as its machine id and SSH host keys; see diskcast images generalise"
};

/** Reasons for which pruning keeps an image. @type {Record<string, string>} */
export const KEEP_REASONS = {
  "last": "one of the newest versions",
  "young": "young",
  "pinned": "pinned",
  "schedule": "a schedule casts it",
  "room": "last image of a room",
  "cast": "a cast uses it",
  "foreign_folder": "not in the daemon's own folder",
  "unreadable": "no readable file on this machine"
};

/** Grades of the preflight. @type {Record<string, {text: string, tone: string}>} */
export const PREFLIGHT_GRADES = {
  "ok": {"text": "OK", "tone": "good"},
  "unknown": {"text": "Unknown", "tone": "off"},
  "warn": {"text": "Warn", "tone": "warn"},
  "refuse": {"text": "Refuse", "tone": "bad"}
};

/** Enrolment of machines. @type {Record<string, {text: string, tone: string}>} */
export const ENROLMENT_STATES = {
  "new": {"text": "Not enrolled", "tone": "off"},
  "waiting": {"text": "Waiting for approval", "tone": "warn"},
  "approved": {"text": "Approved", "tone": "busy"},
  "enrolled": {"text": "Enrolled", "tone": "good"},
  "blocked": {"text": "Revoked", "tone": "bad"}
};

/** Rules for machines that enrol. @type {Record<string, {text: string, hint: string}>} */
export const ENROLMENT_MODES = {
  "token": {"text": "Token", "hint": "A machine enrols with a valid token."},
  "approve": {"text": "Approval", "hint": "An operator also compares a code and approves each machine."}
};

/** Rules for unknown machines that boot over the network. @type {Record<string, {text: string, hint: string}>} */
export const UNKNOWN_MACHINES = {
  "off": {"text": "Off", "hint": "Unknown machines boot from their disks."},
  "ask": {"text": "Ask", "hint": "They boot the live system and wait for an operator's approval."},
  "auto": {"text": "Automatic", "hint": "They boot the live system and enrol by the room's rule."}
};

/** Systems that machines boot. @type {Record<string, string>} */
export const BOOT_ACTIONS = {
  "live": "live system",
  "disk": "its disk"
};

/** Roles of tokens. @type {Record<string, {text: string, hint: string}>} */
export const ROLES = {
  "view": {"text": "View", "hint": "Sees everything except secrets."},
  "operate": {"text": "Operate", "hint": "Sees and changes everything."},
  "enrol": {"text": "Enrol", "hint": "For agents: enrols machines, of one room or of all, nothing else."},
  "boot": {"text": "Boot", "hint": "For a boot service: asks for the systems that machines boot, nothing else."}
};

/** Start conditions of casts. @type {Record<string, {text: string, hint: string}>} */
export const START_MODES = {
  "joined": {"text": "When machines have joined", "hint": "Starts automatically."},
  "manual": {"text": "By hand", "hint": "Machines gather until an operator chooses “Start now”."}
};

/** Policies for stragglers. @type {Record<string, {text: string, hint: string}>} */
export const SLOW_POLICIES = {
  "demote": {"text": "Finish stragglers afterwards", "hint": "The others continue at full rate."},
  "wait": {"text": "Wait for stragglers", "hint": "The cast runs at the pace of the slowest machine."},
  "drop": {"text": "Drop stragglers", "hint": "The cast continues without them, and they fail."}
};

/** Bottlenecks that a machine reports. @type {Record<string, string>} */
export const BOTTLENECKS = {
  "network": "its network link",
  "socket": "its processor (socket queue)",
  "decode": "its processor",
  "disk": "its disk",
  "source": "the sender's disk",
  "sender": "the sender's processor",
  "ceiling": "the rate limit",
  "none": ""
};

/** Replacements for bottlenecks of casts that are worded for the command line. @type {Record<string, string>} */
export const CAST_BOTTLENECKS = {
  "--rate": "the chosen rate",
  "--max-rate": "the chosen maximum rate",
  "this machine's processor": "the sender's processor",
  "nothing (climbing or idle)": "nothing: the rate is climbing"
};

/** Kinds of problems that a daemon reports. @type {Record<string, string>} */
export const PROBLEM_KINDS = {
  "database": "Database",
  "library": "Image library",
  "cast": "Cast",
  "disk": "Disk",
  "clock": "Clock",
  "enrolment": "Enrolment",
  "request": "Request",
  "certificate": "Certificate"
};

/** Reasons for machines that reported no error. @type {Record<string, string>} */
export const STATE_REASONS = {
  "failed": "It failed without reporting a reason.",
  "lost": "The sender no longer hears from it.",
  "absent": "It never joined the cast.",
  "dropped": "The cast dropped it because it was too slow.",
  "slow": "It is falling behind the group.",
  "tail": "It is much slower than the group, which doesn't wait for it."
};

/** The next step by the state of a machine. @type {Record<string, string>} */
export const STATE_ADVICE = {
  "failed": "Fix the cause, then cast again to this machine: blocks already on its disk are kept.",
  "lost": "Check that it is switched on and its network cable is plugged in. If it returns while the cast runs, it resumes automatically.",
  "absent": "Check that it is switched on and its agent runs, then cast again to this machine.",
  "dropped": "Cast again to this machine alone, or choose “finish stragglers afterwards”.",
  "slow": "No action needed yet: if it stays slow, the cast's policy for stragglers applies.",
  "tail": "No action needed: the cast finishes it after the others, at its own rate."
};

/** The next step by the exit code of an agent. @type {Record<number, string>} */
export const EXIT_CODE_ADVICE = {
  10: "Correct the agent's options on the machine, then cast again. Nothing was written.",
  11: "Check the machine's network interface and cable, then restart the agent.",
  12: "Correct the agent's options on the machine, then cast again. Nothing was written.",
  13: "Correct the agent's options on the machine, then cast again. Nothing was written.",
  14: "Correct the agent's options on the machine, then cast again. Nothing was written.",
  15: "Correct the agent's options on the machine, then cast again. Nothing was written.",
  20: "Check the image with diskcast verify, then cast it again.",
  21: "Check the image with diskcast verify, then cast it again.",
  22: "Pack or fetch the image again, then cast it again.",
  23: "Check the image with diskcast verify, then cast it again.",
  24: "Don't change the image file during a cast. Cast it again.",
  25: "Check the image with diskcast verify, then cast it again.",
  26: "Check the image with diskcast verify, then cast it again.",
  27: "Check the image with diskcast verify, then cast it again.",
  30: "Check the machine's disk settings. Nothing was written.",
  31: "Use a larger disk, or an image of a smaller disk. Nothing was written.",
  32: "Choose another target disk for this machine. Nothing was written.",
  33: "Unmount the disk, or boot the machine from the network, then cast again. Nothing was written.",
  34: "Boot the machine from the network or a USB stick so that its disk is free. Nothing was written.",
  35: "Remove the disk's write protection, then cast again. Nothing was written.",
  36: "Choose one disk with the agent's --target, then cast again. Nothing was written.",
  37: "Use an image made for disks like this one. Nothing was written.",
  38: "The image is on the disk and verified. Run diskcast-agent restore with the same fit options, or check the disk's size.",
  39: "Follow the advice of 'diskcast casts preflight', or choose another image. Nothing was written.",
  40: "Check the network between sender and machine, then cast again. Verified blocks are kept.",
  41: "Check the machine's network and the switch's multicast settings, then cast again.",
  42: "Check the network between sender and machine, then cast again. Verified blocks are kept.",
  43: "Cast again when you are ready. Verified blocks are kept.",
  44: "Fix the cause that the cast reports, then cast again. Verified blocks are kept.",
  45: "Check the cast's message about this machine; its agent may be too old.",
  46: "Choose one cast with the agent's --cast, or use another multicast group.",
  47: "Cast again to this machine. If it was too slow, choose “finish stragglers afterwards”.",
  48: "Check the network between sender and machine, then cast again. Verified blocks are kept.",
  49: "Check the network between sender and machine, then cast again. Verified blocks are kept.",
  50: "Its disk failed to read or write. Check its health (smartctl) and its cable; replace it if this happens again.",
  51: "Its disk returned other bytes than were written. Don't trust it: replace the disk, then cast again.",
  52: "Its disk failed to read or write. Check its health (smartctl) and its cable; replace it if this happens again.",
  70: "Update the agent and the sender to the same version, then cast again.",
  71: "Update the agent and the sender to the same version, then cast again.",
  72: "Update the agent and the sender to the same version, then cast again.",
  90: "Check the keys and pins that the agent was started with. Nothing was written.",
  91: "Sign the image with diskcast images sign, by a key that the machine trusts, then cast it again. Nothing was written.",
  92: "Cast a newer version of the image, or lower the floor. Nothing was written.",
  93: "Give the agent the sender's current pin, and find out whose certificate it saw. Nothing was written.",
  94: "Check the machine's enrolment in the dashboard: token, second claim, approval.",
  95: "Check the keys and pins that the agent was started with. Nothing was written.",
  96: "Check the keys and pins that the agent was started with. Nothing was written."
};
