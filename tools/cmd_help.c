// cmd_help.c: `kiln help`, and the manual page, both made from the tables of options.
#include "tools/cmd.h"

#include "backend/os.h"

#include <ctype.h>

enum { INDENT = 6, COLUMN = 30, MIN_WIDTH = 60, MAX_WIDTH = 100 };

typedef struct Page {
    FILE *out;
    int width;
    void *mem; // scratch
} Page;

static Page page_new(FILE *out) {
    int width = os_is_terminal(out) ? os_terminal_width(out) : 80;
    return (Page){out, MAX(MIN_WIDTH, MIN(width, MAX_WIDTH)), mem_new(NULL, 1)};
}

// Words of `text`, folded to the page's width; the first line begins at column `at`, the others at
// `indent`. Blank lines in the text separate paragraphs.
static void fold(const Page *p, const char *text, int at, int indent) {
    int column = at;
    while (*text) {
        if (*text == '\n' && text[1] == '\n') {
            fprintf(p->out, "\n\n%*s", indent, "");
            column = indent;
            text += 2;
            continue;
        }
        if (isspace((unsigned char)*text)) {
            text++;
            continue;
        }
        int n = (int)strcspn(text, " \n");
        bool first = column == at || column == indent;
        if (column + n + !first > p->width && column > indent) {
            fprintf(p->out, "\n%*s", indent, "");
            column = indent;
            first = true;
        }
        column += fprintf(p->out, "%s%.*s", first ? "" : " ", n, text);
        text += n;
    }
    fputc('\n', p->out);
}

// "-W, --width PIXELS"
static char *spelling(void *mem, const Option *o) {
    char letter[8] = "    ";
    if (o->letter) snprintf(letter, sizeof letter, "-%c, ", o->letter);
    const char *value = o->kind == OPT_FLAG ||
        o->kind == OPT_LATER ? "" : o->value ? o->value : "VALUE";
    return mem_printf(mem, "%s--%s%s%s", letter, o->name, *value ? " " : "", value);
}

// The help of an option with what follows by itself: other spelling, range, default.
static char *description(void *mem, const Option *o) {
    char *range = option_range(mem, o), *text = mem_strdup(mem, o->help);
    bool names = o->kind == OPT_CHOICE || o->kind == OPT_DEVICE;
    if (*range && names) {
        text = mem_printf(mem, "%s One of: %s.", text, range);
    } else if (*range) {
        range[0] = (char)toupper((unsigned char)range[0]);
        text = mem_printf(mem, "%s %s.", text, range);
    }
    const char *fallback = o->says ? o->says : o->fallback;
    if (fallback) text = mem_printf(mem, "%s Default: %s.", text, fallback);
    if (o->alias) text = mem_printf(mem, "%s Also spelled --%s.", text, o->alias);
    return text;
}

// "kiln train MODEL [OPTIONS]"
static char *usage(void *mem, const Command *c) {
    char *text = mem_printf(mem, "kiln %s", c->name);
    bool options = false;
    for (int i = 0; i < c->option_count; i++) {
        const Option *o = &c->options[i];
        if (!o->operand) options = true;
        else text = mem_printf(mem, o->required ? "%s %s" : "%s [%s]", text, o->name);
    }
    return options ? mem_printf(mem, "%s [OPTIONS]", text) : text;
}

static void print_option(const Page *p, const Option *o) {
    char *name = o->operand ? mem_strdup(p->mem, o->name) : spelling(p->mem, o);
    int at = fprintf(p->out, "%*s%s", 2, "", name);
    if (at + 2 > COLUMN) {
        fprintf(p->out, "\n%*s", COLUMN, "");
        at = COLUMN;
    } else {
        at += fprintf(p->out, "%*s", COLUMN - at, "");
    }
    fold(p, description(p->mem, o), at, COLUMN);
}

// Names of options of later versions, in one paragraph.
static char *later_names(void *mem, const Command *c) {
    char *text = mem_strdup(mem, "");
    for (int i = 0; i < c->option_count; i++)
        if (c->options[i].kind == OPT_LATER)
            text = mem_printf(mem, "%s%s--%s", text, *text ? ", " : "", c->options[i].name);
    return text;
}

// The heading of row i: its own, or that of the rows above.
static const char *group_of(const Command *c, int i) {
    for (; i >= 0; i--)
        if (c->options[i].group) return c->options[i].group;
    return NULL;
}

static bool same_group(const char *a, const char *b) {
    return a == b || (a && b && strcmp(a, b) == 0);
}

// Groups in order of first appearance; rows of one group may stand apart in the table.
static int groups_of(const Command *c, const char *groups[32]) {
    int n = 0;
    for (int i = 0; i < c->option_count; i++) {
        const char *group = c->options[i].operand ? NULL : group_of(c, i);
        bool seen = false;
        for (int k = 0; k < n; k++) seen = seen || same_group(groups[k], group);
        if (!seen && !c->options[i].operand && n < 32) groups[n++] = group;
    }
    return n;
}

static bool in_group(const Command *c, int i, const char *group) {
    const Option *o = &c->options[i];
    return !o->operand && o->kind != OPT_LATER && same_group(group_of(c, i), group);
}

bool help_command(const Command *c, Error *err) {
    (void)err; // what could not be written is found by main
    Page p = page_new(stdout);
    fprintf(p.out, "%s: %s\n\n", usage(p.mem, c), c->summary);
    if (c->text) {
        fold(&p, c->text, 0, 0);
        fputc('\n', p.out);
    }
    for (int i = 0; i < c->option_count; i++)
        if (c->options[i].operand) print_option(&p, &c->options[i]);
    const char *groups[32];
    int n = groups_of(c, groups);
    for (int k = 0; k < n; k++) {
        fprintf(p.out, "%s:\n", groups[k] ? groups[k] : "options");
        for (int i = 0; i < c->option_count; i++)
            if (in_group(c, i, groups[k])) print_option(&p, &c->options[i]);
    }
    char *later = later_names(p.mem, c);
    if (*later) {
        fputs("later versions: ", p.out);
        fold(&p, later, 16, 2);
    }
    if (c->examples) {
        fputs("examples:\n", p.out);
        for (const char *at = c->examples; *at;) {
            int length = (int)strcspn(at, "\n");
            fprintf(p.out, "  %.*s\n", length, at);
            at += length + (at[length] == '\n');
        }
    }
    mem_free(p.mem);
    return true;
}

bool help_all(FILE *out) {
    fputs("kiln SUBCOMMAND [OPTIONS]: image generation on any device\n\n", out);
    for (int i = 0; command_at(i); i++)
        fprintf(out, "  %-10s %s\n", command_at(i)->name, command_at(i)->summary);
    fputs("\n`kiln help SUBCOMMAND` describes its options; `kiln --version` prints the version.\n"
          "Environment: KILN_DEVICE (default of --device), KILN_MODELS (folder of models),\n"
          "KILN_CACHE (folder of the pipeline cache).\n"
          "Exit status: 0 done, 1 failed, 2 wrong command line, 130 interrupted.\n", out);
    return true;
}

// ---- the manual page --------------------------------------------------------------------------

// Text for troff: backslashes and hyphens escaped; a line must not begin with a dot or quote.
static void troff(FILE *out, const char *text) {
    bool start = true;
    for (; *text; text++) {
        if (start && (*text == '.' || *text == '\'')) fputs("\\&", out);
        if (*text == '\\') fputs("\\e", out);
        else if (*text == '-') fputs("\\-", out);
        else if (*text == '\n' && text[1] == '\n') fputs("\n.PP", out), text++, fputc('\n', out);
        else fputc(*text, out);
        start = *text == '\n';
    }
}

static void troff_line(FILE *out, const char *before, const char *text, const char *after) {
    fputs(before, out);
    troff(out, text);
    fputs(after, out);
}

static void man_command(FILE *out, const Command *c) {
    void *mem = mem_new(NULL, 1);
    troff_line(out, ".SH KILN ", c->name, "\n");
    troff_line(out, ".B ", usage(mem, c), "\n.PP\n");
    if (c->text) troff_line(out, "", c->text, "\n");
    for (int i = 0; i < c->option_count; i++) {
        const Option *o = &c->options[i];
        if (o->kind == OPT_LATER) continue;
        const char *name = o->operand ? o->name : spelling(mem, o);
        while (*name == ' ') name++;
        troff_line(out, ".TP\n.B ", name, "\n");
        troff_line(out, "", description(mem, o), "\n");
    }
    char *later = later_names(mem, c);
    if (*later) troff_line(out, ".PP\nKept for later versions, and refused: ", later, ".\n");
    if (c->examples) troff_line(out, ".PP\n.nf\n", c->examples, "\n.fi\n");
    mem_free(mem);
}

static void man_page(FILE *out) {
    fprintf(out,
            ".TH KILN 1 \"\" \"Kiln %s\" \"User Commands\"\n.SH NAME\nkiln \\- image generation on "
                 "any device\n.SH SYNOPSIS\n.B kiln\n.I SUBCOMMAND\n[OPTIONS]\n.SH DESCRIPTION\n",
            KILN_VERSION);
    for (int i = 0; command_at(i); i++) {
        troff_line(out, ".TP\n.B ", command_at(i)->name, "\n");
        troff_line(out, "", command_at(i)->summary, "\n");
    }
    for (int i = 0; command_at(i); i++) man_command(out, command_at(i));
    fputs(".SH ENVIRONMENT\n.TP\n.B KILN_DEVICE\ndefault of \\-\\-device\n.TP\n.B "
          "KILN_MODELS\nfolder in "
          "which model names are looked up\n.TP\n.B KILN_CACHE\nfolder of the pipeline cache; "
          "default: "
          "the XDG cache folder\n.TP\n.B NO_COLOR\nno colours in the progress line\n"
          ".SH \"EXIT STATUS\"\n.TP\n.B 0\ndone\n.TP\n.B 1\nthe work failed\n.TP\n.B 2\nthe "
          "command line "
          "is wrong\n.TP\n.B 130\ninterrupted\n", out);
}

// ---- the subcommand ---------------------------------------------------------------------------

typedef struct Values {
    const char *name;
    bool man;
} Values;

static const char *command_name(int i) { return command_at(i) ? command_at(i)->name : NULL; }

static const Option options[] = {
    {.name = "SUBCOMMAND", .kind = OPT_CHOICE, FIELD(Values, name), .choice_at = command_name,
     .operand = true, .help = "The subcommand to describe; without it, a list of all."},
    {.name = "man", .kind = OPT_FLAG, FIELD(Values, man),
     .help = "Write the manual page (troff), as installed with the program."},
};

static bool run(Cmd *cmd, const void *values, Error *err) {
    const Values *v = values;
    if (v->man && v->name)
        return cmd_usage(cmd, err, "--man: expected no subcommand beside it, found %s", v->name);
    if (v->man) return man_page(stdout), true;
    return v->name ? help_command(command_find(v->name), err) : help_all(stdout);
}

const Command cmd_help = {
    .name = "help",
    .summary = "describe a subcommand and its options",
    COMMAND_OPTIONS(Values, options),
    .common_offset = NO_COMMON,
    .run = run,
};
