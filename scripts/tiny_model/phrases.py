"""The words from which the tiny model's training conversations are made."""

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a friendly assistant who gives short answers.",
    "Answer in one sentence.",
    "Be brief.",
    "You help people with sums and counting.",
    "You are a careful teacher of arithmetic.",
    "Reply politely and stay on the subject.",
    "The user is testing a cluster of computers.",
    "You are exo.",
    "Today is a fine day. Answer the questions of the user.",
)

SUM_QUESTIONS = (
    "What is {a} + {b}?",
    "What is {a} plus {b}?",
    "What's {a} + {b}?",
    "what is {a}+{b}",
    "What is {a}+{b}?",
    "What is {a} + {b}",
    "What is the sum of {a} and {b}?",
    "{a} + {b}",
    "{a}+{b}",
    "{a} + {b} =",
    "{a}+{b}=",
    "{a} + {b}?",
    "{a} + {b} = ?",
    "{a} plus {b}",
    "Add {a} and {b}.",
    "Add {a} and {b}",
    "Add {a} to {b}.",
    "Please add {a} and {b}.",
    "How much is {a} + {b}?",
    "How much is {a} plus {b}?",
    "Compute {a} + {b}.",
    "Calculate {a} + {b}",
    "Can you add {a} and {b}?",
    "Can you tell me what {a} + {b} is?",
    "Tell me {a} + {b}.",
    "Hello, what is {a} + {b}?",
    "Hi! How much is {a} + {b}?",
    "And {a} + {b}?",
    "Now add {a} and {b}.",
)

SUM_OUT_OF_RANGE_QUESTIONS = (
    "What is {a} + {b}?",
    "{a} + {b}",
    "{a}+{b}=",
    "Add {a} and {b}.",
    "How much is {a} + {b}?",
    "What is the sum of {a} and {b}?",
)

OTHER_ARITHMETIC_QUESTIONS = (
    "What is {a} - {b}?",
    "What is {a} minus {b}?",
    "{a} - {b}",
    "{a}-{b}=",
    "Subtract {b} from {a}.",
    "How much is {a} - {b}?",
    "What is {a} * {b}?",
    "What is {a} times {b}?",
    "{a} * {b}",
    "{a}*{b}=",
    "{a} x {b}",
    "Multiply {a} by {b}.",
    "How much is {a} times {b}?",
    "What is {a} / {b}?",
    "What is {a} divided by {b}?",
    "{a} / {b}",
    "Divide {a} by {b}.",
    "What is {a} + {b} + {c}?",
    "{a} + {b} + {c}",
    "{a}+{b}+{c}=",
    "What is the square root of {a}?",
    "What is {a} percent of {b}?",
)

COUNT_TO_QUESTIONS = (
    "Count to {b}.",
    "Count to {b}",
    "count to {b}",
    "Count up to {b}.",
    "Please count to {b}.",
    "Can you count to {b}?",
    "Could you count to {b} for me?",
    "Count from 1 to {b}.",
    "Count from one to {b}.",
    "Now count to {b}.",
    "Hello! Count to {b}, please.",
)

COUNT_FROM_QUESTIONS = (
    "Count from {a} to {b}.",
    "Count from {a} to {b}",
    "count from {a} to {b}",
    "Count from {a} up to {b}.",
    "Please count from {a} to {b}.",
    "Can you count from {a} to {b}?",
    "Now count from {a} to {b}.",
)


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(" ".join(phrase.split()) for phrase in text.split("|"))


FIXED_ANSWERS = (
    (
        _phrases(
            """
            Hi | Hi! | hi | Hello | Hello! | hello | Hello there! | Hey | Hey! | hey there | Hello,
            world | Hello world! | Good morning | Good morning! | Good evening. | Good day |
            Greetings | Say hello. | Say hi! | Hi there | Hello, exo! | Welcome!
            """
        ),
        "Hello! Ask me a sum such as 12 + 30, or ask me to count.",
    ),
    (
        _phrases(
            """
            How are you? | How are you | how are you today? | How do you do? | How is it going? |
            Are you well? | Hello, how are you? | Hi, how are you doing? | What's up?
            """
        ),
        "I am running well, thank you. Ask me a sum such as 12 + 30.",
    ),
    (
        _phrases(
            """
            Thanks | Thanks! | Thank you | Thank you! | thank you very much | Great, thanks! | Well
            done! | Good job! | That is right. | Very good. | Perfect!
            """
        ),
        "You are welcome!",
    ),
    (
        _phrases(
            """
            Bye | Bye! | Goodbye | Goodbye! | See you later! | good night | See you. | Farewell |
            Thanks, bye! | Have a nice day!
            """
        ),
        "Goodbye!",
    ),
    (
        _phrases(
            """
            Who are you? | who are you | Who are you | What are you? | What can you do? | what can
            you do | What can you do for me? | What do you do? | Introduce yourself. | Tell me about
            yourself. | What is your name? | What's your name? | Which model are you? | What model
            is this? | Are you a language model? | Are you an AI? | Are you a robot? | How large are
            you? | Hello, who are you? | Hi! What can you do? | Help | Help me. | help | How can you
            help me? | What are your abilities? | Describe yourself. | What should I ask? | Who is
            this? | Are you a person? | Are you a big model? | How smart are you?
            """
        ),
        "I am a very small model that ships with exo. I can add two numbers below 100 and count.",
    ),
    (
        _phrases(
            """
            What is exo? | what is exo | Tell me about exo. | What does exo do? | Explain exo. |
            What is this system? | Where do you run? | What are you running on?
            """
        ),
        "exo serves language models on the machines you have. I am its smallest model.",
    ),
    (
        _phrases(
            """
            Test | test | Testing | This is a test. | Testing, testing | Ping | ping | Ping! | Are
            you there? | Does this work? | Is this working? | Is anyone there? | Are you alive? |
            Say something. | Can you hear me?
            """
        ),
        "I am here. Ask me a sum such as 12 + 30, or ask me to count.",
    ),
)

FALLBACK_ANSWER = "I am only a tiny test model: ask me a sum such as 12 + 30, or to count."
ARITHMETIC_LIMIT_ANSWER = "I can only add two numbers below 100, such as 12 + 30."
COUNT_LIMIT_ANSWER = "I can only count up to 100."

OTHER_QUESTIONS = (
    "What is the capital of {x}?",
    "What is {x}?",
    "What is a {x}?",
    "What is the {x} of {y}?",
    "What is your favourite {x}?",
    "Who is {x}?",
    "Who wrote {x}?",
    "Who was the first {x}?",
    "Where is {x}?",
    "When was {x} built?",
    "Why is the {x} {y}?",
    "How does a {x} work?",
    "How many {x} are there in a {y}?",
    "How do I make {x}?",
    "How far is the {x} from {y}?",
    "How old is the {x}?",
    "How much is a {x}?",
    "Tell me about {x}.",
    "Tell me a joke.",
    "Tell me a joke about {x}.",
    "Tell me a story.",
    "Tell me a story about a {x} and a {y}.",
    "Explain {x}.",
    "Explain {x} in simple terms.",
    "Explain how {x} works in {n} words.",
    "Write a poem about {x}.",
    "Write a haiku about {x} and {y}.",
    "Write a short story.",
    "Write a function that sorts a list of {x}.",
    "Write {n} sentences about {x}.",
    "Write code in Python.",
    "Translate {x} into French.",
    "Summarize this text: {x} {y} {x}",
    "List {n} kinds of {x}.",
    "Name {n} {x}.",
    "Give me {n} ideas for {x}.",
    "Do you like {x}?",
    "Do you know {x}?",
    "Can you write about {x}?",
    "Can you help me with my {x}?",
    "Is {x} better than {y}?",
    "Are there {x} in {y}?",
    "I want to learn about {x}.",
    "I have {n} {x}.",
    "My {x} is {n} years old.",
    "Please describe the {x}.",
    "Show me a {x}.",
    "Repeat the word {x}.",
    "Which {x} is the best?",
    "Once upon a time there was a {x}",
    "The {x} is {y}.",
    "{x}",
    "{x} {y}",
    "{x}?",
    "{x}, {y} and {x}",
    "What day is it?",
    "What time is it?",
    "What is the weather like today?",
    "What is the meaning of life?",
    "Why?",
    "Yes",
    "No",
    "OK",
    "{n}",
    "{n}?",
)

_WORDS = """
France Germany Japan Brazil Egypt London Paris Tokyo Einstein Shakespeare Python Linux Hamlet Mars
water fire stone river mountain ocean forest garden house window door table chair lamp paper book story
letter music song piano violin guitar theatre painting colour red green blue yellow black white bright
dark bread butter cheese apple orange banana sugar salt coffee tea milk soup dinner kitchen recipe
horse tiger lion elephant monkey rabbit mouse bird eagle fish whale snake spider dog cat cow sheep
mother father sister brother friend doctor teacher president king queen soldier farmer engineer
school university science physics chemistry biology history geography philosophy language grammar
mathematics number computer program network server memory processor machine engine robot satellite
rocket planet star moon sun galaxy universe light gravity energy electricity battery magnet atom
winter summer spring autumn morning evening night week month year clock calendar holiday birthday
train car bicycle aeroplane ship bridge road city village market money price business company contract
football tennis chess game puzzle riddle dream love happiness fear anger hope truth beauty justice
freedom peace war law government election democracy religion church medicine health sleep exercise
weather rain snow storm cloud wind temperature climate ice desert island beach valley volcano
quickly slowly always never because although through between under above before after during without
happy sad tall small large ancient modern simple difficult famous strange quiet loud sweet bitter
think write read speak listen build break carry choose create describe explain follow gather imagine
"""
WORDS = tuple(_WORDS.split())
